// The CPU kernels as one extension module. It is compiled once for each instruction set, and the loader
// (kernels.py) imports the best one that the processor has.
#include "python.h"

#include "abi_checks.h"
#include "attention.h"
#include "chain.h"
#include "elementwise.h"
#include "encoder_attention.h"
#include "encoder_norm.h"
#include "linear_adapted.h"
#include "sampling.h"
#include "tile.h"

#include <cerrno>
#include <cstring>

namespace {

PyObject *set_num_threads(PyObject *, Args args, Py_ssize_t count) {
  if (!takes(1, count, "set_num_threads")) return nullptr;
  num_threads = static_cast<int>(integer(args[0]));
  if (PyErr_Occurred()) return nullptr;
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {METHOD(set_num_threads), LINEAR_METHODS CHAIN_METHODS ELEMENTWISE_METHODS, SAMPLING_METHODS, ENCODER_METHODS, ATTENTION_METHODS, {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, NAME, nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

} // namespace

// The loader compares `abi_digest` with its own. Raises ImportError where the system refuses what the instructions need.
PyMODINIT_FUNC INIT() {
#ifdef TILE_INSTRUCTIONS
  if (!tile::ask_permission()) {
    PyErr_Format(PyExc_ImportError, "the system does not permit AMX tiles: %s", std::strerror(errno));
    return nullptr;
  }
#endif
  PyObject *module = PyModule_Create(&definition);
  if (module != nullptr && PyModule_AddStringConstant(module, "abi_digest", ABI_DIGEST) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
