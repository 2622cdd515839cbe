// SPDX-License-Identifier: MIT
//
// PERCPU_CONF: any text is read without harm; whatever was understood is printed as a text that is understood without a
// complaint, and as the same.
#include <cstring>
#include <memory>
#include <string>

#include "base/text.h"
#include "core/config.h"
#include "fuzz.h"

std::vector<std::string_view> fuzz_seeds() {
  return {"unit_size:64K,reserved_size:8K,dynamic_size:28K", "first_chunk:embed,balance:sync,nodes:one",
          "empty_low:2,empty_high:4,window:32G,max_alloc:1M,warnings:10", "decay:off,cache:1M,stats:json,check:full",
          "pin:list:1,0,2-5,pin_skip:2+spare*,pin_verbose", "help,,nonsense:3,balance:thread"};
}

namespace {

void complain(void* count, const char* message) {
  if (message == nullptr || message[0] == 0 || strchr(message, '\n') != nullptr) {
    fprintf(stderr, "expected a complaint in one line, found: %s\n", message);
    abort();
  }
  ++*static_cast<int*>(count);
}

std::string printed(const percpu::Config& config) {
  static char buffer[16384];
  percpu::Text text(buffer);
  percpu::print_config(config, text);
  return std::string(buffer, text.length_bytes());
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size_bytes) {
  const std::string input(reinterpret_cast<const char*>(data), size_bytes);  // ends at its first zero byte
  for (size_t page_size : {size_t{4096}, size_t{65536}}) {
    int complaints = 0;
    const auto config = std::make_unique<percpu::Config>(percpu::parse_config(input.c_str(), page_size, complain, &complaints));
    FUZZ_EXPECT(config->unit_size_bytes % page_size == 0 && config->max_alloc_bytes != 0);
    FUZZ_EXPECT(config->pin_list.count <= percpu::PinList::kMaxRanges);
    const std::string first = printed(*config);
    complaints = 0;
    const auto again = std::make_unique<percpu::Config>(percpu::parse_config(first.c_str(), page_size, complain, &complaints));
    if (complaints != 0 || printed(*again) != first) {
      fprintf(stderr, "expected no complaint about the printed configuration, and the same again:\n%s\n%s\n", first.c_str(),
              printed(*again).c_str());
      abort();
    }
  }
  return 0;
}
