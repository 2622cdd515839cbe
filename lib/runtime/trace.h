// SPDX-License-Identifier: MIT
//
// The trace points: USDT probes of provider `percpu`, a nop each until a tracer attaches (bpftrace, perf, systemtap).
// docs/tracing.md tells users about them.
//
//   percpu:alloc          pool name, handle, size, align, unit offset, bytes in all copies, flags
//   percpu:alloc_failed   pool name, size, align, flags, errno
//   percpu:free           pool name, handle, size, unit offset
//   percpu:chunk_create   pool name, chunk number, its first handle, bytes in all copies
//   percpu:chunk_destroy  pool name, chunk number, its first handle, bytes in all copies
#ifndef PERCPU_RUNTIME_TRACE_H
#define PERCPU_RUNTIME_TRACE_H

#ifdef PERCPU_USDT
#include <sys/sdt.h>
#define PERCPU_TRACE4(event, a, b, c, d) DTRACE_PROBE4(percpu, event, a, b, c, d)
#define PERCPU_TRACE5(event, a, b, c, d, e) DTRACE_PROBE5(percpu, event, a, b, c, d, e)
#define PERCPU_TRACE7(event, a, b, c, d, e, f, g) DTRACE_PROBE7(percpu, event, a, b, c, d, e, f, g)
#else
#define PERCPU_TRACE4(event, a, b, c, d) ((void)(a), (void)(b), (void)(c), (void)(d))
#define PERCPU_TRACE5(event, a, b, c, d, e) ((void)(a), (void)(b), (void)(c), (void)(d), (void)(e))
#define PERCPU_TRACE7(event, a, b, c, d, e, f, g) \
  ((void)(a), (void)(b), (void)(c), (void)(d), (void)(e), (void)(f), (void)(g))
#endif

#endif  // PERCPU_RUNTIME_TRACE_H
