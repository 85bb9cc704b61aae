#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <optional>
#include <string>

#include "core/util/prelude.h"

namespace torch_tensorrt::core::util {
namespace {

using logging::LogLevel;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// --- Checks ---

TEST(CheckTest, NamesPlaceConditionAndReason) {
  const int size = 3;
  const int line = __LINE__ + 2;
  try {
    TORCHTRT_CHECK(size < 2, "got " << size << " bytes, " << 2 << " fit");
    FAIL() << "no Error was thrown";
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_TRUE(contains(what, "test_prelude.cpp:" + std::to_string(line))) << what;
    EXPECT_TRUE(contains(what, "size < 2")) << what;
    EXPECT_TRUE(contains(what, "got 3 bytes, 2 fit")) << what;
    EXPECT_FALSE(contains(error.msg(), "test_prelude.cpp")) << error.msg();
    EXPECT_TRUE(contains(what, error.msg()));
  }
}

TEST(CheckTest, EvaluatesTheReasonOnlyOnFailureAndTheConditionOnce) {
  int conditions = 0;
  int reasons = 0;
  TORCHTRT_CHECK(++conditions == 1, "reason " << ++reasons);
  EXPECT_EQ(conditions, 1);
  EXPECT_EQ(reasons, 0);
  EXPECT_THROW(TORCHTRT_CHECK(++conditions == 1, "reason " << ++reasons), Error);
  EXPECT_EQ(conditions, 2);
  EXPECT_EQ(reasons, 1);
}

TEST(CheckTest, IsOneStatement) {
  if (true)
    TORCHTRT_CHECK(true, "");
  else
    FAIL() << "the else belongs to another if";
}

TEST(CheckTest, ErrorIsAStandardException) {
  EXPECT_THROW(TORCHTRT_THROW_ERROR("always"), std::exception);
}

// --- Logging ---

class LoggingTest : public ::testing::Test {
 protected:
  LoggingTest() : level_before_(logging::get_reportable_log_level()) {}
  ~LoggingTest() override {
    logging::set_reportable_log_level(level_before_);
  }

 private:
  const LogLevel level_before_;
};

// Returns what `action` writes to stderr.
template <class Action>
std::string logged_by(const Action& action) {
  ::testing::internal::CaptureStderr();
  action();
  return ::testing::internal::GetCapturedStderr();
}

TEST_F(LoggingTest, ReportsItsLevelAndAllThatIsGraver) {
  const auto log_all = [] {
    LOG_ERROR("e" << 1);
    LOG_WARNING("w" << 2);
    LOG_INFO("i" << 3);
    LOG_DEBUG("d" << 4);
  };
  const std::string prefix = ": [Torch-TensorRT] - ";
  const std::string error = "ERROR" + prefix + "e1\n";
  const std::string warning = "WARNING" + prefix + "w2\n";
  const std::string info = "INFO" + prefix + "i3\n";
  const std::string debug = "DEBUG" + prefix + "d4\n";

  logging::set_reportable_log_level(LogLevel::kINTERNAL_ERROR);
  EXPECT_EQ(logged_by(log_all), "");
  logging::set_reportable_log_level(LogLevel::kERROR);
  EXPECT_EQ(logged_by(log_all), error);
  logging::set_reportable_log_level(LogLevel::kWARNING);
  EXPECT_EQ(logged_by(log_all), error + warning);
  logging::set_reportable_log_level(LogLevel::kINFO);
  EXPECT_EQ(logged_by(log_all), error + warning + info);
  logging::set_reportable_log_level(LogLevel::kGRAPH);
  EXPECT_EQ(logged_by(log_all), error + warning + info + debug);
}

TEST_F(LoggingTest, EvaluatesOnlyWhatItReports) {
  int evaluations = 0;
  logging::set_reportable_log_level(LogLevel::kERROR);
  EXPECT_EQ(logged_by([&] { LOG_DEBUG("n " << ++evaluations); }), "");
  EXPECT_EQ(evaluations, 0);
  logging::set_reportable_log_level(LogLevel::kDEBUG);
  EXPECT_EQ(logged_by([&] { LOG_DEBUG("n " << ++evaluations); }), "DEBUG: [Torch-TensorRT] - n 1\n");
}

TEST_F(LoggingTest, ParsesNamesInAnyCaseAndNumbers) {
  EXPECT_EQ(logging::parse_level("internal_error"), LogLevel::kINTERNAL_ERROR);
  EXPECT_EQ(logging::parse_level("ERROR"), LogLevel::kERROR);
  EXPECT_EQ(logging::parse_level("Warning"), LogLevel::kWARNING);
  EXPECT_EQ(logging::parse_level("info"), LogLevel::kINFO);
  EXPECT_EQ(logging::parse_level("4"), LogLevel::kDEBUG);
  EXPECT_EQ(logging::parse_level("5"), LogLevel::kGRAPH);
  for (const char* text : {"", "6", "-1", "33", "warn", "warning "}) {
    EXPECT_EQ(logging::parse_level(text), std::nullopt) << "'" << text << "'";
  }
}

// The environment is read once per process, so each of its values needs a process of its own. A death test is one.
class LogLevelEnvironmentTest : public ::testing::Test {
 protected:
  LogLevelEnvironmentTest() {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }
};

[[noreturn]] void print_level_for(const char* value) {
  ::setenv("TORCHTRT_LOG_LEVEL", value, 1);
  const auto level = static_cast<int>(logging::get_reportable_log_level());
  std::fprintf(stderr, "level %d", level);
  std::exit(0);
}

TEST_F(LogLevelEnvironmentTest, SetsTheFirstLevel) {
  EXPECT_EXIT(print_level_for("debug"), ::testing::ExitedWithCode(0), "^level 4");
  EXPECT_EXIT(print_level_for("1"), ::testing::ExitedWithCode(0), "^level 1");
  EXPECT_EXIT(print_level_for(""), ::testing::ExitedWithCode(0), "^level 2");
}

TEST_F(LogLevelEnvironmentTest, AnUnknownNameIsNamedAndMeansWarning) {
  EXPECT_EXIT(
      print_level_for("loud"),
      ::testing::ExitedWithCode(0),
      "^WARNING: \\[Torch-TensorRT\\] - TORCHTRT_LOG_LEVEL is 'loud', expected .*debug.*\nlevel 2");
}

// --- make_trt ---

struct Counted {
  explicit Counted(int* destroyed) : destroyed_(destroyed) {}
  ~Counted() {
    ++*destroyed_;
  }
  int* destroyed_;
};

TEST(MakeTrtTest, OwnsTheObject) {
  int destroyed = 0;
  std::shared_ptr<Counted> object = make_trt(new Counted(&destroyed));
  std::shared_ptr<Counted> second = object;
  object.reset();
  EXPECT_EQ(destroyed, 0);
  second.reset();
  EXPECT_EQ(destroyed, 1);
}

TEST(MakeTrtTest, NullStaysNull) {
  EXPECT_EQ(make_trt(static_cast<Counted*>(nullptr)), nullptr);
}

} // namespace
} // namespace torch_tensorrt::core::util
