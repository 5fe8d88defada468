// Arguments of a method: addresses, integers, floats. An address of 0 stands for a tensor that is absent.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <omp.h>

#include <cstdint>

using Args = PyObject *const *;

template <class T> inline T *address(PyObject *value) {
  return reinterpret_cast<T *>(static_cast<uintptr_t>(PyLong_AsUnsignedLongLong(value)));
}

inline int64_t integer(PyObject *value) { return PyLong_AsLongLong(value); }

inline float real(PyObject *value) { return static_cast<float>(PyFloat_AsDouble(value)); }

// The one thread count of all kernels; the worker sets it once.
inline int num_threads = 1;

// Says which method was called with how many arguments instead of how many. Returns true when the count is right.
inline bool takes(Py_ssize_t expected, Py_ssize_t given, const char *name) {
  if (given == expected) return true;
  PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", name, expected, given);
  return false;
}

// Runs `body` without the interpreter's lock. Conversion errors of the arguments surface here, before the body runs.
template <class Body> inline PyObject *unlocked(Body body) {
  if (PyErr_Occurred()) return nullptr;
  Py_BEGIN_ALLOW_THREADS;
  body();
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

#define METHOD_AS(name, function) {#name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, nullptr}
#define METHOD(name) METHOD_AS(name, name)
