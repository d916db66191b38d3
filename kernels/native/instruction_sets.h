// The table of kernels in use: the best that this processor can run, or the one selected.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace fastinfogan {

// Names of those that this processor can run, best last: "plain", "avx2", "avx512".
std::vector<std::string> instruction_sets();

// False if this processor cannot run it or it is unknown.
bool use_instruction_set(const std::string& name);

const Kernels& kernels();

}  // namespace fastinfogan
