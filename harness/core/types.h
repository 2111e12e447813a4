// Scalar and matrix types that every file of the project shares.
#pragma once

#include <Eigen/Core>
#include <cstdint>

namespace subquad {

using Index = Eigen::Index;  // sizes and subscripts; signed, 64 bit

template <class T>
using MatrixT = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using VectorT = Eigen::Matrix<T, Eigen::Dynamic, 1>;
template <class T>
using RowVectorT = Eigen::Matrix<T, 1, Eigen::Dynamic>;

using Matrix = MatrixT<float>;  // row-major, as everything that crosses an interface
using Vector = VectorT<float>;
using RowVector = RowVectorT<float>;
using MatrixD = MatrixT<double>;
using VectorD = VectorT<double>;

using MatrixMap = Eigen::Map<Matrix>;  // one head [n, d] of a tensor, writable
using ConstMatrixMap = Eigen::Map<const Matrix>;

}  // namespace subquad
