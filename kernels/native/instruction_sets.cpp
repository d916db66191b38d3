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

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> tables{&plain::kernels};
#if FASTINFOGAN_X86
  // __builtin_cpu_supports checks, too, that the operating system saves the registers.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) {
    return tables;
  }
  tables.push_back(&avx2::kernels);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    tables.push_back(&avx512::kernels);
  }
#endif
  return tables;
}

std::atomic<const Kernels*>& selected() {
  static std::atomic<const Kernels*> table{runnable().back()};
  return table;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* table : runnable()) names.emplace_back(table->name);
  return names;
}

bool use_instruction_set(const std::string& name) {
  for (const Kernels* table : runnable()) {
    if (name == table->name) {
      selected() = table;
      return true;
    }
  }
  return false;
}

const Kernels& kernels() { return *selected(); }

}  // namespace fastinfogan
