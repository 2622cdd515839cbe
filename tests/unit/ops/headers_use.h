/* SPDX-License-Identifier: MIT */
/* One use of everything, as C11 and as C++17: what headers.sh compiles and runs. In C++ an inline function, twice. */
#include <percpu/ops.h>

enum headers_enum { kFirst, kSecond };

struct headers_areas {
  uint64_t *word;
  uint8_t *byte;
  int16_t *half;
  uint32_t *unit;
  double *real;
  float *small_real;
  void **pointer;
  enum headers_enum *choice;
  struct percpu_pair *pair;
  struct percpu_list *list;
};

#ifdef __cplusplus
inline
#else
static inline
#endif
    uint64_t
    headers_use(const struct headers_areas *a) {
  struct percpu_pair seen = {0, 0}, pair = {1, 2};
  struct percpu_list_node node, *chain;
  uint64_t old = 1, sums[2], *copy;
  unsigned cpu;
  percpu_write(a->word, 1);
  percpu_add(a->word, -1);
  percpu_inc(a->word);
  percpu_dec(a->byte);
  percpu_sub(a->half, 3u);
  percpu_or(a->unit, 1u << 31);
  percpu_and(a->unit, ~1);
  percpu_add(a->real, 1);
  percpu_sub(a->small_real, 0.5);
  percpu_write(a->pointer, &node);
  percpu_write(a->choice, kSecond);
  if (percpu_xchg(a->pointer, NULL) == NULL) sums[0] = 0;
  if (percpu_cmpxchg(a->choice, kSecond, kFirst) == kFirst) sums[0] = 0;
  (void)percpu_try_cmpxchg(a->word, &old, percpu_add_return(a->word, 1));
  (void)percpu_cmpxchg16(a->pair, &seen, pair);
  percpu_list_push(a->list, &node);
  (void)percpu_list_pop(a->list);
  (void)percpu_list_drain(a->list, 0, &chain);
  percpu_sum_n(a->word, 1, sums);
  percpu_for_each_possible_cpu(cpu) if (percpu_ptr(a->word, cpu) == NULL) return 0;
  percpu_for_each_copy(copy, a->word) sums[0] += *copy;
  return sums[0] + percpu_sum(a->word) + percpu_read(a->word) + *percpu_this_ptr(a->word) + percpu_read16(a->pair).low +
         percpu_load16(percpu_this_ptr(a->pair)).high + (uint64_t)percpu_sum(a->real);
}
