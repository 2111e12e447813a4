// Attention matrices of a trained model: as files and side by side in a picture.
#pragma once

#include <string>
#include <vector>

#include "harness/core/types.h"

namespace subquad {

struct AttentionPlotOptions {
  std::string out;  // "" = folder "attention" beside the checkpoint
  std::vector<std::string> formats;
  std::vector<std::string> plugins;
  Index layer = 0, head = 0, example = 0;  // of the test split
  bool wanted = false;                     // --attention was given
  bool csv = false;                        // the matrices as text too
};

// dense.npy, estimated.npy (methods that estimate one) and method.npy, each [n, n], for one head of
// one test example, with attention.json; then attention.png and .svg by plots/attention.py. Returns
// the script's exit status. Unsupported when the layer's method shows no matrix.
int plot_attention(const std::string& checkpoint, const AttentionPlotOptions& options);

}  // namespace subquad
