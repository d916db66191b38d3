#include "arguments.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace fastinfogan {
namespace {

// DLPack's table of C functions (dlpack.h 1.2, DLPackExchangeAPI), which torch offers since 2.10:
// thirty times faster than a call of Tensor.__dlpack__, which counts where an operation takes
// microseconds. Only the head of the structure and the one function used are declared here.
struct ExchangeApi {
  struct {
    std::uint32_t major, minor;
  } version;
  ExchangeApi* previous;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, nb::dlpack::dltensor* out);
};

// The table of a type that defines one itself. Subclasses inherit the attribute, but a fake tensor
// among them has no memory to share: for subclasses, __dlpack__ of the object is called.
const ExchangeApi* exchange_api(PyTypeObject* type) {
  static PyTypeObject* known = nullptr;  // torch.Tensor, which outlives every call
  static const ExchangeApi* api = nullptr;
  if (type == known) return api;
  constexpr const char* attribute = "__dlpack_c_exchange_api__";
  const nb::handle cls(reinterpret_cast<PyObject*>(type));
  if (!nb::hasattr(cls, attribute)) return nullptr;
  if (!nb::cast<bool>(cls.attr("__dict__").attr("__contains__")(attribute))) return nullptr;
  void* pointer =
      PyCapsule_GetPointer(nb::object(cls.attr(attribute)).ptr(), "dlpack_exchange_api");
  if (!pointer) {
    PyErr_Clear();
    return nullptr;
  }
  auto* found = static_cast<const ExchangeApi*>(pointer);
  if (found->version.major != 1 || !found->tensor_from_object) return nullptr;
  known = type;
  api = found;
  return api;
}

unsigned type_of(nb::dlpack::dtype dtype) {
  using Code = nb::dlpack::dtype_code;
  const auto is = [&](Code code, int bits) {
    return dtype.code == static_cast<std::uint8_t>(code) && dtype.bits == bits && dtype.lanes == 1;
  };
  if (is(Code::Float, 32)) return kFloat32;
  if (is(Code::Bfloat, 16)) return kBFloat16;
  if (is(Code::Float, 16)) return kFloat16;
  if (is(Code::Int, 32)) return kInt32;
  if (is(Code::Int, 64)) return kInt64;
  return 0;
}

std::string name_of(nb::dlpack::dtype dtype) {
  static constexpr const char* names[] = {"int", "uint", "float", "?", "bfloat", "complex", "bool"};
  const char* name = dtype.code < 7 ? names[dtype.code] : "float";
  return dtype.code == 6 ? name : name + std::to_string(dtype.bits);
}

std::string names_of(unsigned types) {
  static constexpr const char* names[] = {"float32", "bfloat16", "float16", "int32", "int64"};
  std::string text;
  for (int i = 0; i < 5; ++i) {
    if (!(types >> i & 1)) continue;
    types &= ~(1u << i);
    text += (text.empty() ? "" : types ? ", " : " or ") + std::string(names[i]);
  }
  return text;
}

template <typename Shape>
std::string text_of(const Shape& shape) {
  std::string text = "(";
  for (auto size : shape) text += (size < 0 ? "*" : std::to_string(size)) + ", ";
  if (shape.size() > 0) text.resize(text.size() - (shape.size() > 1 ? 2 : 1));
  return text + ")";
}

std::string class_of(nb::handle object) { return nb::str(object.type().attr("__name__")).c_str(); }

}  // namespace

Index Tensor::size() const {
  return std::accumulate(shape.begin(), shape.end(), Index{1}, std::multiplies<Index>());
}

Dtype Tensor::dtype() const {
  return type == kBFloat16 ? Dtype::bfloat16 : type == kFloat16 ? Dtype::float16 : Dtype::float32;
}

void Arguments::value_error(const std::string& message) const {
  throw nb::value_error((std::string(function_) + ": " + message).c_str());
}
void Arguments::type_error(const std::string& message) const {
  throw nb::type_error((std::string(function_) + ": " + message).c_str());
}

Tensor Arguments::read(nb::handle object, const std::string& name, unsigned types,
                       bool written) const {
  Tensor tensor;
  nb::dlpack::dltensor view;
  if (written && nb::getattr(object, "requires_grad", nb::none()).is(nb::handle(Py_True))) {
    type_error(name + " is written into and must not require grad: detach it");
  }
  if (const ExchangeApi* api = exchange_api(Py_TYPE(object.ptr()))) {
    if (api->tensor_from_object(object.ptr(), &view) != 0) {
      PyErr_Clear();
      type_error(name + " has no memory that can be shared");
    }
  } else {
    nb::ndarray<nb::ro> shared;
    nb::ndarray<> writable;
    if (!(written ? nb::try_cast(object, writable, false) : nb::try_cast(object, shared, false))) {
      type_error(name + " must be a CPU tensor" + (written ? " to write into" : "") + ", not " +
                 class_of(object));
    }
    if (written) shared = nb::ndarray<nb::ro>(writable);
    view.data = const_cast<void*>(shared.data());
    view.device = {shared.device_type(), shared.device_id()};
    view.ndim = static_cast<std::int32_t>(shared.ndim());
    view.dtype = shared.dtype();
    view.shape = const_cast<std::int64_t*>(shared.shape_ptr());
    view.strides = const_cast<std::int64_t*>(shared.stride_ptr());
    view.byte_offset = 0;
    owners_.push_back(std::move(shared));
  }
  if (view.device.device_type != nb::device::cpu::value) value_error(name + " must be on the CPU");
  tensor.type = type_of(view.dtype);
  if (!(tensor.type & types)) {
    type_error(name + " must be " + names_of(types) + ", not " + name_of(view.dtype));
  }
  tensor.shape.assign(view.shape, view.shape + view.ndim);
  if (view.strides) {
    tensor.strides.assign(view.strides, view.strides + view.ndim);
  } else {
    tensor.strides.assign(tensor.shape.size(), 1);
    for (std::size_t i = tensor.shape.size(); i-- > 1;) {
      tensor.strides[i - 1] = tensor.strides[i] * tensor.shape[i];
    }
  }
  tensor.data = static_cast<char*>(view.data) + view.byte_offset;
  if (!view.data && tensor.size() > 0) value_error(name + " has no memory");
  return tensor;
}

Tensor Arguments::contiguous(nb::handle object, const std::string& name, unsigned types,
                             std::initializer_list<Index> shape, bool written) const {
  Tensor tensor = read(object, name, types, written);
  const bool fits = shape.size() == tensor.shape.size() &&
                    std::equal(shape.begin(), shape.end(), tensor.shape.begin(),
                               [](Index expected, Index actual) {
                                 return expected == kAny || expected == actual;
                               });
  if (!fits) {
    value_error(name + " must be of shape " + text_of(shape) + ", not " + text_of(tensor.shape));
  }
  Index expected = 1;
  for (std::size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected && tensor.size() > 0) {
      value_error(name + " must be contiguous");
    }
    expected *= tensor.shape[i];
  }
  return tensor;
}

Tensor Arguments::input(nb::handle object, const std::string& name, unsigned types,
                        std::initializer_list<Index> shape) const {
  return contiguous(object, name, types, shape, false);
}
Tensor Arguments::output(nb::handle object, const std::string& name, unsigned types,
                         std::initializer_list<Index> shape) const {
  return contiguous(object, name, types, shape, true);
}

Tensor Arguments::dense(nb::handle object, const std::string& name, unsigned types,
                        bool written) const {
  Tensor tensor = read(object, name, types, written);
  std::vector<std::size_t> order(tensor.shape.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return tensor.strides[a] < tensor.strides[b]; });
  Index expected = 1;
  for (std::size_t i : order) {
    if (tensor.shape[i] == 1) continue;
    if (tensor.strides[i] != expected && tensor.size() > 0) {
      value_error(name + " must fill its memory without gaps");
    }
    expected *= tensor.shape[i];
  }
  return tensor;
}

std::vector<nb::handle> Arguments::list(nb::handle object, const char* name) const {
  if (!nb::isinstance<nb::list>(object) && !nb::isinstance<nb::tuple>(object)) {
    type_error(std::string(name) + " must be a list, not " + class_of(object));
  }
  std::vector<nb::handle> items;
  for (nb::handle item : object) items.push_back(item);
  return items;
}

std::int64_t Arguments::integer(nb::handle object, const char* name, std::int64_t low,
                                std::int64_t high) const {
  std::int64_t value;
  if (!PyLong_Check(object.ptr())) {
    type_error(std::string(name) + " must be an int, not " + class_of(object));
  }
  if (!nb::try_cast(object, value) || value < low || value > high) {
    value_error(std::string(name) + " must be from " + std::to_string(low) + " to " +
                std::to_string(high));
  }
  return value;
}

std::uint32_t Arguments::uint32(nb::handle object, const char* name) const {
  return static_cast<std::uint32_t>(integer(object, name, 0, 0xFFFFFFFF));
}

std::uint64_t Arguments::seed(nb::handle object) const {
  std::uint64_t value;
  if (!PyLong_Check(object.ptr())) type_error("seed must be an int, not " + class_of(object));
  if (!nb::try_cast(object, value)) value_error("seed must be 0 or more and below 2^64");
  return value;
}

double Arguments::number(nb::handle object, const char* name) const {
  double value;
  if (!nb::try_cast(object, value)) {
    type_error(std::string(name) + " must be a number, not " + class_of(object));
  }
  return value;
}

bool Arguments::flag(nb::handle object, const char* name) const {
  if (!PyBool_Check(object.ptr())) {
    type_error(std::string(name) + " must be True or False, not " + class_of(object));
  }
  return object.is(nb::handle(Py_True));
}

Activation Arguments::activation(nb::handle object) const {
  return static_cast<Activation>(integer(object, "activation", 0, 3));
}

}  // namespace fastinfogan
