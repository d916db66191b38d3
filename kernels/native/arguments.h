// Reads and checks the arguments of a binding: an error is one line that names the function and the
// argument. Numbers are read here, too, since nanobind's own error is the whole signature.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "tasks.h"

namespace fastinfogan {

namespace nb = nanobind;
using namespace nb::literals;

enum : unsigned {
  kFloat32 = 1,
  kBFloat16 = 2,
  kFloat16 = 4,
  kInt32 = 8,
  kInt64 = 16,
  kFloating = kFloat32 | kBFloat16 | kFloat16
};
constexpr Index kAny = -1;

// A tensor's memory, zero-copy through DLPack; valid while the Arguments that read it live.
struct Tensor {
  void* data = nullptr;
  unsigned type = 0;  // one of the bits above
  std::vector<Index> shape, strides;

  Index size() const;
  Index itemsize() const { return type == kInt64 ? 8 : type & (kBFloat16 | kFloat16) ? 2 : 4; }
  Dtype dtype() const;  // of a floating-point tensor
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

class Arguments {
 public:
  explicit Arguments(const char* function) : function_(function) {}

  // A contiguous CPU tensor of one of the types and of a shape (kAny: any size).
  Tensor input(nb::handle object, const std::string& name, unsigned types,
               std::initializer_list<Index> shape) const;
  // The same, to be written into.
  Tensor output(nb::handle object, const std::string& name, unsigned types,
                std::initializer_list<Index> shape) const;
  // A CPU tensor of any shape whose elements fill its memory without gaps, in any order.
  Tensor dense(nb::handle object, const std::string& name, unsigned types, bool written) const;

  std::vector<nb::handle> list(nb::handle object, const char* name) const;
  std::int64_t integer(nb::handle object, const char* name, std::int64_t low,
                       std::int64_t high) const;
  std::uint32_t uint32(nb::handle object, const char* name) const;
  std::uint64_t seed(nb::handle object) const;
  double number(nb::handle object, const char* name) const;
  bool flag(nb::handle object, const char* name) const;
  Activation activation(nb::handle object) const;

  [[noreturn]] void value_error(const std::string& message) const;
  [[noreturn]] void type_error(const std::string& message) const;

 private:
  Tensor read(nb::handle object, const std::string& name, unsigned types, bool written) const;
  Tensor contiguous(nb::handle object, const std::string& name, unsigned types,
                    std::initializer_list<Index> shape, bool written) const;

  const char* function_;
  mutable std::vector<nb::ndarray<nb::ro>> owners_;  // of what came by __dlpack__ or as a buffer
};

// An argument that may be None as far as nanobind is concerned: Arguments has the better error.
inline auto operator""_any(const char* name, std::size_t) { return nb::arg(name).none(); }

template <typename Operation>
void without_gil(Operation operation) {
  nb::gil_scoped_release released;
  operation();
}

// The bindings, one file for each part: a function checks its arguments, fills in a task with them
// and runs the operation on it without the GIL.
void bind_random(nb::module_&);
void bind_objective(nb::module_&);
void bind_adam(nb::module_&);
void bind_norm(nb::module_&);

}  // namespace fastinfogan
