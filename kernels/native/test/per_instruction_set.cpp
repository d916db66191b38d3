// Compiled once per instruction set, like kernels.cpp: the functions that the accuracy test calls.
#include "check.h"
#include "simd.h"

namespace fastinfogan::FASTINFOGAN_ISA {
namespace {

template <Floats (*function)(Floats)>
void map(const float* in, Index size, float* out) {
  for (Index i = 0; i < size; i += kLanes)
    store(out + i, function(load(in + i, size - i)), size - i);
}

Floats softplus_value(Floats x) { return softplus(x).value; }
Floats softplus_derivative(Floats x) { return softplus(x).derivative; }

template <typename From, typename To>
void convert_elements(const void* in, Index size, void* out) {
  for (Index i = 0; i < size; i += kLanes) {
    store(static_cast<To*>(out) + i, load(static_cast<const From*>(in) + i, size - i), size - i);
  }
}

void convert(const void* in, Dtype from, Index size, void* out, Dtype to) {
  if (from == Dtype::float32) {
    return to == Dtype::bfloat16 ? convert_elements<float, BFloat16>(in, size, out)
                                 : convert_elements<float, Float16>(in, size, out);
  }
  return from == Dtype::bfloat16 ? convert_elements<BFloat16, float>(in, size, out)
                                 : convert_elements<Float16, float>(in, size, out);
}

#define NAME_OF(isa) #isa
#define NAME(isa) NAME_OF(isa)

}  // namespace

extern const test::Functions functions;
const test::Functions functions = {
    NAME(FASTINFOGAN_ISA),    map<exp>,     map<log>,  map<log1p_unit>, map<softplus_value>,
    map<softplus_derivative>, map<sigmoid>, map<tanh>, convert};

}  // namespace fastinfogan::FASTINFOGAN_ISA
