// The operations: each cuts its task (tasks.h) into pieces of fixed size, runs a kernel on each in
// several threads, and merges partial results in a fixed order, so that results do not depend on
// the number of threads. Tasks are trusted: the bindings check what Python passes. All may throw
// std::bad_alloc.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "tasks.h"

namespace fastinfogan {

std::array<std::uint32_t, 4> encrypt(const std::array<std::uint32_t, 4>& counter, std::uint32_t k0,
                                     std::uint32_t k1, int rounds);
void words(std::uint64_t seed, std::uint32_t step, std::uint32_t stream, std::uint32_t first_row,
           Index rows, Index columns, std::uint32_t* out);
void draw_codes(const CodesTask&);

void q_head_log_likelihood(const LikelihoodTask&);
void adversarial_losses(const AdversarialTask&);
void d_head_objective(const HeadTask&, const AdversarialTask&);

void adam(const std::vector<AdamTask>&, AdamStep);  // sets stream_copies itself

void norm_statistics(const StatisticsTask&);
void norm_apply(const ApplyTask&);
void norm_gradient(const NormGradientTask&);
void activation_gradient(const ActivationGradientTask&);

}  // namespace fastinfogan
