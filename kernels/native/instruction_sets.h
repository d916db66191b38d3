// Which table of leaves computes: the best that this processor can run, or the one asked for.
#pragma once

#include <string>
#include <vector>

#include "leaves.h"

namespace fastinfogan {

// Names of those that this processor can run, best last: "plain", "avx2", "avx512".
std::vector<std::string> instruction_sets();

// False if this processor cannot run it or it is unknown.
bool use_instruction_set(const std::string& name);

const Leaves& leaves();

}  // namespace fastinfogan
