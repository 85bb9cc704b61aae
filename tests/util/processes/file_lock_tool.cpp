// A process with one FileLock, for tests that are not written in C++. It reads commands from stdin.
//
//   file_lock_tool exclusive|shared PATH
//
// Commands, one per line, and the line printed for each:
//   try             acquired | busy
//   lock            acquired                     (waits as long as it takes)
//   wait SECONDS    acquired | busy              (waits at most that long)
//   unlock          released
//   count N FILE    counted                      (N times: takes the lock, adds 1 to the number in FILE, releases)
// For anything that fails, it prints "error" and the text of the error without its line breaks. It ends when stdin
// ends.

#include <algorithm>
#include <chrono>
#include <exception>
#include <fstream>
#include <iostream>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>

#include "core/util/file_lock.h"

namespace {

using torch_tensorrt::core::util::FileLock;

void count(FileLock& lock, int times, const std::string& path) {
  for (int i = 0; i < times; ++i) {
    const std::lock_guard<FileLock> guard(lock);
    long value = 0;
    std::ifstream(path) >> value;
    std::ofstream(path) << value + 1;
  }
}

std::string obey(FileLock& lock, const std::string& line) {
  std::istringstream words(line);
  std::string command;
  words >> command;
  if (command == "try") {
    return lock.try_lock() ? "acquired" : "busy";
  }
  if (command == "lock") {
    lock.lock();
    return "acquired";
  }
  if (double seconds = 0; command == "wait" && words >> seconds) {
    return lock.try_lock_for(std::chrono::duration<double>(seconds)) ? "acquired" : "busy";
  }
  if (command == "unlock") {
    lock.unlock();
    return "released";
  }
  int times = 0;
  std::string path;
  if (command == "count" && words >> times && std::getline(words >> std::ws, path)) {
    count(lock, times, path);
    return "counted";
  }
  throw std::invalid_argument("unknown command '" + line + "'");
}

} // namespace

int main(int argc, char** argv) {
  const std::string mode = argc == 3 ? argv[1] : "";
  if (mode != "exclusive" && mode != "shared") {
    std::cerr << "usage: file_lock_tool exclusive|shared PATH\n";
    return 2;
  }
  FileLock lock(argv[2], mode == "shared" ? FileLock::Mode::kShared : FileLock::Mode::kExclusive);
  for (std::string line; std::getline(std::cin, line);) {
    std::string answer;
    try {
      answer = obey(lock, line);
    } catch (const std::exception& error) {
      answer = std::string("error ") + error.what();
      std::replace(answer.begin(), answer.end(), '\n', ' ');
    }
    std::cout << answer << std::endl;
  }
  return 0;
}
