// The C boundary: this thread's last message, and exceptions turned into statuses.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "t2fw/t2fw.h"

namespace t2fw {

// Thrown by fail() and caught by guard(); the text is in the thread's message already.
struct Failure {
  t2fw_status status;
};

// Sets this thread's message to "<call>: <text>" and throws. Only inside guard().
[[noreturn]] void fail(t2fw_status status, const std::string& text);
// Names the API call under way in this thread, for fail().
void enter(const char* call);
// Sets this thread's message to "<call>: <text>" and returns status.
t2fw_status record(t2fw_status status, const char* text) noexcept;

const char* text_of(t2fw_device device);
const char* text_of(t2fw_dtype dtype);

// Runs the body of one API call.
template <class Body>
t2fw_status guard(const char* call, Body&& body) noexcept {
  enter(call);
  try {
    body();
    return T2FW_SUCCESS;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::bad_alloc&) {
    return record(T2FW_OUT_OF_MEMORY, "host memory ran out");
  } catch (const std::runtime_error& error) {
    return record(T2FW_DEVICE_ERROR, error.what());
  } catch (const std::exception& error) {
    return record(T2FW_INTERNAL_ERROR, error.what());
  } catch (...) {
    return record(T2FW_INTERNAL_ERROR, "an exception of an unknown type");
  }
}

}  // namespace t2fw
