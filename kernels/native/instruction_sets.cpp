#include "instruction_sets.h"

#include <atomic>

#if FASTINFOGAN_X86
#include <cpuid.h>
#endif

namespace fastinfogan {
namespace {

#if FASTINFOGAN_X86
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

std::vector<const Leaves*> runnable() {
  std::vector<const Leaves*> tables{&plain::leaves};
#if FASTINFOGAN_X86
  // __builtin_cpu_supports asks the operating system, too, whether it saves the registers.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) {
    return tables;
  }
  tables.push_back(&avx2::leaves);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    tables.push_back(&avx512::leaves);
  }
#endif
  return tables;
}

std::atomic<const Leaves*>& chosen() {
  static std::atomic<const Leaves*> table{runnable().back()};
  return table;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Leaves* table : runnable()) names.emplace_back(table->name);
  return names;
}

bool use_instruction_set(const std::string& name) {
  for (const Leaves* table : runnable()) {
    if (name == table->name) {
      chosen() = table;
      return true;
    }
  }
  return false;
}

const Leaves& leaves() { return *chosen(); }

}  // namespace fastinfogan
