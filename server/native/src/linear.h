#pragma once
#include "python.h"
#define LINEAR_METHODS METHOD(set_num_threads)
