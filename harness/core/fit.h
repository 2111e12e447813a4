// Fitting a method's own parameters to dense attention by its own backward pass.
#pragma once

#include "harness/core/method.h"

namespace subquad {

// What Method::fit does unless a method has a fit of its own. AdamW (Loshchilov and Hutter 2019,
// arXiv 1711.05101) on all parameters() of a method that was prepared with Env::gradients; the loss
// of a call is |out - dense|^2 / |dense|^2, the square of its relative Frobenius error.
// Our choice: the learning rate rises over the first tenth of the steps and falls to 0 along a
// cosine; the gradient's norm is clipped at 1; weight decay 0.01 where Parameter::decay; beta 0.9
// and 0.999. Unsupported when there is nothing to fit, or no backward pass. Stops at a loss that is
// not finite. The same data and method give the same bits for any number of threads.
//
// FitReport: the loss of the first step, and the mean over the last tenth of the steps.
FitReport fit_by_gradient(Method& method, FitData& data, const FitOptions& options);

}  // namespace subquad
