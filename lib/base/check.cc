// SPDX-License-Identifier: MIT
#include "base/check.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdlib>
#include <cstring>

#include "base/raw_syscall.h"

namespace percpu {

namespace {

// write(2) without libc's cancellation point: a thread may be cancelled here neither half way through a line nor with one
// of our locks held.
void write_all(int file, const char* chars, size_t len_bytes) {
  while (len_bytes > 0) {
    const long written = raw_syscall(SYS_write, file, reinterpret_cast<long>(chars), static_cast<long>(len_bytes));
    if (written == -EINTR) continue;
    if (written <= 0) break;  // nowhere to complain to
    chars += written;
    len_bytes -= static_cast<size_t>(written);
  }
}

class Line {
 public:
  Line() : text_(buffer_, kLineBytes) { text_.put("libpercpu: "); }
  Text& text() { return text_; }

  // Ends the line, marks it if it was too long, and writes it.
  void write() {
    size_t len = text_.length_bytes();
    if (text_.truncated()) memcpy(buffer_ + len - 3, "...", 3);
    buffer_[len] = '\n';  // takes the place of the terminator
    write_all(STDERR_FILENO, buffer_, len + 1);
  }

 private:
  char buffer_[kLineBytes];
  Text text_;
};

const char* inside_tree(const char* file) {
  while (strncmp(file, "../", 3) == 0) file += 3;
  return file;
}

}  // namespace

void report(const char* format, ...) {
  Line line;
  va_list args;
  va_start(args, format);
  line.text().vformat(format, args);
  va_end(args);
  line.write();
}

void report_raw(const char* chars, size_t len_bytes) { write_all(STDERR_FILENO, chars, len_bytes); }
void report_raw_to(int file, const char* chars, size_t len_bytes) { write_all(file, chars, len_bytes); }

void fatal(const char* format, ...) {
  Line line;
  va_list args;
  va_start(args, format);
  line.text().vformat(format, args);
  va_end(args);
  line.write();
  abort();
}

void check_failed(const char* file, int line_number, const char* condition, const char* format, ...) {
  Line line;
  line.text().format("%s:%d: broken invariant (%s): ", inside_tree(file), line_number, condition);
  va_list args;
  va_start(args, format);
  line.text().vformat(format, args);
  va_end(args);
  line.write();
  abort();
}

}  // namespace percpu
