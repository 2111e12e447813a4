// Which convolution engine is the fastest for a problem, by a model of its cost.
#pragma once

#include <string>

#include "harness/core/types.h"

namespace subquad {

enum class ConvEngine { direct, shared, local, partitioned };

struct ConvSizes {
  Index n = 0;
  Index d_k = 0;
  Index columns = 0;   // of the values
  Index segments = 1;  // assumed to be of equal length
  bool causal = true;
  bool single = false;  // transforms in float
};

struct ConvPlan {
  ConvEngine engine = ConvEngine::direct;
  Index block = 0;     // partitioned only
  double seconds = 0;  // on one core of the machine the model was fitted on
};

// The cost of one head: profiles, exponentials, normaliser and product.
double conv_seconds(const ConvSizes& sizes, ConvEngine engine, Index block = 0);
// Additions and multiplications of the same, for figures in operations per second.
double conv_operations(const ConvSizes& sizes, ConvEngine engine, Index block);

// name: direct, shared, local, partitioned, or auto for the cheapest. A function of the sizes
// alone, so the choice, and with it the bits, are the same everywhere.
ConvPlan choose_conv_plan(const ConvSizes& sizes, const std::string& name);

}  // namespace subquad
