// SPDX-License-Identifier: MIT
//
// What benchmark programs tell scripts/bench: with --json FILE each writes {"rows": [{"name", "unit", "samples": [...]}, ...]}, one
// row a line. bench/harness makes medians and tables of them. Rows are counted in anything that is better when less: ns, KiB, %.
#ifndef PERCPU_BENCH_JSON_ROWS_H
#define PERCPU_BENCH_JSON_ROWS_H

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

class JsonRows {
 public:
  // Takes "--json FILE" out of the arguments; without it nothing is written.
  JsonRows(int* argc, char** argv) {
    for (int i = 1; i + 1 < *argc; i++) {
      if (std::strcmp(argv[i], "--json") != 0) continue;
      file_ = argv[i + 1];
      for (int j = i; j + 2 <= *argc; j++) argv[j] = argv[j + 2];  // with the null pointer behind the last
      *argc -= 2;
      return;
    }
  }

  // Names and units are written as they are: letters, digits, spaces and / _ - . , % only.
  void add(const std::string& name, const char* unit, const std::vector<double>& samples) {
    std::string row = "  {\"name\": \"" + name + "\", \"unit\": \"" + unit + "\", \"samples\": [";
    for (size_t i = 0; i < samples.size(); i++) {
      char number[32];
      std::snprintf(number, sizeof number, "%s%.6g", i == 0 ? "" : ", ", samples[i]);
      row += number;
    }
    rows_.push_back(row + "]}");
  }

  // Returns false, having said why, when the file cannot be written.
  bool write() const {
    if (file_.empty()) return true;
    std::FILE* file = std::fopen(file_.c_str(), "w");
    bool good = file != nullptr && std::fputs("{\"rows\": [\n", file) >= 0;
    for (size_t i = 0; good && i < rows_.size(); i++)
      good = std::fprintf(file, "%s%s\n", rows_[i].c_str(), i + 1 < rows_.size() ? "," : "") > 0;
    good = good && std::fputs("]}\n", file) >= 0;
    if (file != nullptr) good = std::fclose(file) == 0 && good;
    if (!good) std::perror(file_.c_str());
    return good;
  }

 private:
  std::string file_;
  std::vector<std::string> rows_;
};

#endif  // PERCPU_BENCH_JSON_ROWS_H
