// SPDX-License-Identifier: MIT
//
// Work for a real database: see database_load.h. Each thread has keys of its own, so it knows what it must read back.
#include "database_load.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/merge_operator.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <random>
#include <thread>
#include <vector>

namespace percpu {
namespace {

using rocksdb::Slice;
using rocksdb::Status;

// Merging appends.
class Append final : public rocksdb::AssociativeMergeOperator {
 public:
  const char* Name() const override { return "Append"; }
  bool Merge(const Slice& /*key*/, const Slice* existing, const Slice& value, std::string* merged,
             rocksdb::Logger* /*logger*/) const override {
    merged->clear();
    if (existing != nullptr) merged->assign(existing->data(), existing->size());
    merged->append(value.data(), value.size());
    return true;
  }
};

// Small buffers and files, so that little data goes through flushes, several levels and a cache that is too small.
rocksdb::Options options_for(const std::shared_ptr<rocksdb::Statistics>& statistics) {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.statistics = statistics;
  options.write_buffer_size = 512 << 10;
  options.target_file_size_base = 256 << 10;
  options.max_bytes_for_level_base = 1 << 20;
  options.level0_file_num_compaction_trigger = 2;
  options.max_background_jobs = 2;
  options.max_open_files = 32;
  options.compression = rocksdb::kSnappyCompression;
  options.merge_operator = std::make_shared<Append>();
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(256 << 10);
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  table.cache_index_and_filter_blocks = true;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

// One thread's share of the work: its keys, what their values are by now, and its calls.
class Worker {
 public:
  Worker(uint32_t number, const DatabaseLoad& load)
      : number_(number), nr_keys_(load.nr_keys), random_(load.seed * 1'000 + number), written_(load.nr_keys, 0) {}

  // Writes every key once, in an order of its own, half of them in batches.
  Status fill(rocksdb::DB* db) {
    for (uint64_t i = 0; i < nr_keys_; i++) {
      const uint64_t key = i * kStride % nr_keys_;
      if (i % 2 == 0) {
        if (Status s = put(db, key); !s.ok()) return s;
        continue;
      }
      rocksdb::WriteBatch batch;
      written_[key]++;
      batch.Put(name(key), value(key));
      counts_.keys_written++;
      if (Status s = db->Write(rocksdb::WriteOptions(), &batch); !s.ok()) return s;
    }
    return Status::OK();
  }

  Status overwrite(rocksdb::DB* db) {
    for (uint64_t i = 0; i < nr_keys_ / 2; i++) {
      const uint64_t key = random_() % nr_keys_;
      if (i % 8 != 0) {
        if (Status s = put(db, key); !s.ok()) return s;
        continue;
      }
      written_[key] = kDeleted;
      counts_.keys_written++;
      if (Status s = db->Delete(rocksdb::WriteOptions(), name(key)); !s.ok()) return s;
    }
    return Status::OK();
  }

  // Merges into keys beside the numbered ones.
  Status merge(rocksdb::DB* db) {
    for (uint64_t i = 0; i < nr_keys_ / 8; i++) {
      counts_.keys_written++;
      const Status s = db->Merge(rocksdb::WriteOptions(), name(i % 16) + "-merged", "x");
      if (!s.ok()) return s;
    }
    return Status::OK();
  }

  // Reads keys that are there, keys that are not, and several at once.
  Status read(rocksdb::DB* db) {
    std::string found;
    for (uint64_t i = 0; i < nr_keys_ / 2; i++) {
      const uint64_t key = random_() % nr_keys_;
      counts_.keys_read += 2;
      if (Status s = check(db->Get(rocksdb::ReadOptions(), name(key), &found), key, found); !s.ok()) return s;
      if (!db->Get(rocksdb::ReadOptions(), name(key) + "?", &found).IsNotFound())
        return Status::Corruption("found a key that was never written", name(key));
      if (i % 64 != 0) continue;
      std::vector<std::string> names{name(key), name((key + 1) % nr_keys_), name((key + 2) % nr_keys_)};
      std::vector<std::string> values;
      const std::vector<Status> each =
          db->MultiGet(rocksdb::ReadOptions(), {names.begin(), names.end()}, &values);
      for (uint64_t j = 0; j < names.size(); j++)
        if (Status s = check(each[j], (key + j) % nr_keys_, values[j]); !s.ok()) return s;
    }
    return Status::OK();
  }

  // Walks over short ranges both ways, and once over all of this thread's keys.
  Status scan(rocksdb::DB* db) {
    const std::unique_ptr<rocksdb::Iterator> at(db->NewIterator(rocksdb::ReadOptions()));
    for (uint64_t i = 0; i < nr_keys_ / 50; i++) {
      at->Seek(name(random_() % nr_keys_));
      for (int step = 0; step < 10 && at->Valid(); step++) at->Next();
      for (int step = 0; step < 10 && at->Valid(); step++) at->Prev();
    }
    uint64_t live = 0;
    for (uint64_t key = 0; key < nr_keys_; key++) live += written_[key] != kDeleted;
    uint64_t seen = 0;
    const std::string last = name(nr_keys_);
    for (at->Seek(name(0)); at->Valid() && at->key().compare(last) < 0; at->Next())
      seen += !at->key().ends_with("-merged");
    if (!at->status().ok()) return at->status();
    return seen == live ? Status::OK() : Status::Corruption("a scan did not see every key");
  }

  // Deletes the last tenth of the keys as one range.
  Status delete_range(rocksdb::DB* db) {
    const uint64_t from = nr_keys_ - nr_keys_ / 10;
    for (uint64_t key = from; key < nr_keys_; key++) written_[key] = kDeleted;
    return db->DeleteRange(rocksdb::WriteOptions(), db->DefaultColumnFamily(), name(from), name(nr_keys_));
  }

  const DatabaseLoadCounts& counts() const { return counts_; }

 private:
  static constexpr uint64_t kStride = 7'919;  // prime: i * kStride runs through all keys in a scattered order
  static constexpr uint32_t kDeleted = UINT32_MAX;

  std::string name(uint64_t key) const {
    char text[40];
    snprintf(text, sizeof text, "%04" PRIu32 "-%012" PRIu64, number_, key);
    return text;
  }

  // The value of a key's newest write. Its length differs from write to write; half of it compresses.
  std::string value(uint64_t key) const {
    std::string text = name(key) + "#" + std::to_string(written_[key]) + "#";
    std::mt19937_64 random(key * 31 + written_[key]);
    const size_t length = 20 + random() % 200;
    while (text.size() < length / 2) text.push_back(static_cast<char>(random()));
    text.resize(length, 'v');
    return text;
  }

  Status put(rocksdb::DB* db, uint64_t key) {
    written_[key] = written_[key] == kDeleted ? 1 : written_[key] + 1;
    counts_.keys_written++;
    return db->Put(rocksdb::WriteOptions(), name(key), value(key));
  }

  Status check(const Status& got, uint64_t key, const std::string& found) const {
    if (written_[key] == kDeleted)
      return got.IsNotFound() ? Status::OK() : Status::Corruption("found a key that was deleted", name(key));
    if (!got.ok()) return got;
    return found == value(key) ? Status::OK() : Status::Corruption("read another value than was written", name(key));
  }

  const uint32_t number_;
  const uint64_t nr_keys_;
  std::mt19937_64 random_;
  std::vector<uint32_t> written_;  // by key: the number of its newest write, 0 before the first, or kDeleted
  DatabaseLoadCounts counts_;
};

// Runs one step of all workers at the same time. Returns: the first error.
Status in_threads(std::vector<Worker>& workers, const std::function<Status(Worker&)>& step) {
  std::vector<Status> results(workers.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < workers.size(); i++) threads.emplace_back([&, i] { results[i] = step(workers[i]); });
  for (std::thread& thread : threads) thread.join();
  for (const Status& result : results)
    if (!result.ok()) return result;
  return Status::OK();
}

}  // namespace

TemporaryDirectory::TemporaryDirectory() {
  const char* parent = getenv("TMPDIR");
  path_ = std::string(parent != nullptr && *parent != '\0' ? parent : "/tmp") + "/percpu-rocksdb-XXXXXX";
  if (mkdtemp(path_.data()) != nullptr) return;
  fprintf(stderr, "cannot make a directory %s: %s\n", path_.c_str(), strerror(errno));
  abort();
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

rocksdb::Status run_database_load(const DatabaseLoad& load, DatabaseLoadCounts* counts) {
  std::vector<Worker> workers;
  for (uint32_t i = 0; i < load.nr_threads; i++) workers.emplace_back(i, load);
  const rocksdb::Options options = options_for(load.statistics);
  std::unique_ptr<rocksdb::DB> db;
  const auto open = [&] {
    rocksdb::DB* opened = nullptr;
    const Status s = rocksdb::DB::Open(options, load.directory, &opened);
    db.reset(opened);
    return s;
  };
  const auto step = [&](Status (Worker::*work)(rocksdb::DB*)) {
    return in_threads(workers, [&](Worker& worker) { return (worker.*work)(db.get()); });
  };

  Status s = open();
  if (s.ok()) s = step(&Worker::fill);
  if (s.ok()) s = step(&Worker::overwrite);
  if (s.ok()) s = step(&Worker::merge);
  if (s.ok()) s = step(&Worker::read);
  if (s.ok()) s = step(&Worker::scan);
  if (s.ok()) s = step(&Worker::delete_range);
  if (s.ok()) s = db->Flush(rocksdb::FlushOptions());
  if (s.ok()) s = db->CompactRange(rocksdb::CompactRangeOptions(), nullptr, nullptr);
  if (s.ok()) s = db->Close();
  db.reset();
  if (s.ok()) s = open();
  if (s.ok()) s = step(&Worker::read);
  if (s.ok()) s = step(&Worker::scan);
  if (s.ok()) s = db->Close();
  db.reset();
  for (const Worker& worker : workers) {
    counts->keys_written += worker.counts().keys_written;
    counts->keys_read += worker.counts().keys_read;
  }
  return s;
}

}  // namespace percpu
