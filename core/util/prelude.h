#pragma once

#include "core/util/Exception.h"
#include "core/util/logging.h"
#include "core/util/macros.h"
#include "core/util/make_trt.h"
