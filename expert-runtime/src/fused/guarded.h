// Runs f: null, or the message of what it threw, which the caller frees with hdd_free.
#pragma once
#include <cstring>
#include <exception>

template <typename F> char *guarded(F f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception &e) {
    return strdup(e.what());
  } catch (...) {
    return strdup("unknown C++ exception");
  }
}
