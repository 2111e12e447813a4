#include "methods/engines/fft.h"

#include <map>
#include <mutex>

namespace subquad {
namespace {

// The two precisions of FFTW under one name.
template <class T>
struct Fftw;
template <>
struct Fftw<float> {
  using Complex = fftwf_complex;
  static void* r2c(int n, float* x, Complex* y, unsigned flags) {
    return fftwf_plan_dft_r2c_1d(n, x, y, flags);
  }
  static void* c2r(int n, Complex* y, float* x, unsigned flags) {
    return fftwf_plan_dft_c2r_1d(n, y, x, flags);
  }
  static void run(void* plan, float* x, Complex* y) {
    fftwf_execute_dft_r2c(static_cast<fftwf_plan>(plan), x, y);
  }
  static void destroy(void* plan) { fftwf_destroy_plan(static_cast<fftwf_plan>(plan)); }
  static void run(void* plan, Complex* y, float* x) {
    fftwf_execute_dft_c2r(static_cast<fftwf_plan>(plan), y, x);
  }
};
template <>
struct Fftw<double> {
  using Complex = fftw_complex;
  static void* r2c(int n, double* x, Complex* y, unsigned flags) {
    return fftw_plan_dft_r2c_1d(n, x, y, flags);
  }
  static void* c2r(int n, Complex* y, double* x, unsigned flags) {
    return fftw_plan_dft_c2r_1d(n, y, x, flags);
  }
  static void run(void* plan, double* x, Complex* y) {
    fftw_execute_dft_r2c(static_cast<fftw_plan>(plan), x, y);
  }
  static void destroy(void* plan) { fftw_destroy_plan(static_cast<fftw_plan>(plan)); }
  static void run(void* plan, Complex* y, double* x) {
    fftw_execute_dft_c2r(static_cast<fftw_plan>(plan), y, x);
  }
};

struct Plans {
  void* forward = nullptr;
  void* inverse = nullptr;
};

std::mutex& planner_lock() {  // one for both precisions
  static std::mutex mutex;
  return mutex;
}

template <class T>
std::map<std::pair<Index, Planner>, Plans>& plan_cache() {
  static std::map<std::pair<Index, Planner>, Plans> cache;
  return cache;
}

template <class T>
Plans find_plans(Index length, Planner planner) {
  const std::lock_guard lock(planner_lock());
  Plans& plans = plan_cache<T>()[{length, planner}];
  if (plans.forward == nullptr) {
    AlignedArray<T> x(length), y(length + 2);
    auto* spectrum = reinterpret_cast<typename Fftw<T>::Complex*>(y.data());
    const unsigned flags = planner == Planner::measure ? FFTW_MEASURE : FFTW_ESTIMATE;
    plans.forward = Fftw<T>::r2c(static_cast<int>(length), x.data(), spectrum, flags);
    plans.inverse = Fftw<T>::c2r(static_cast<int>(length), spectrum, x.data(), flags);
    SUBQUAD_CHECK(plans.forward != nullptr && plans.inverse != nullptr,
                  "FFTW has no plan for length {}", length);
  }
  return plans;
}

template <class T>
void forget_plans() {
  for (auto& [key, plans] : plan_cache<T>()) {
    Fftw<T>::destroy(plans.forward);
    Fftw<T>::destroy(plans.inverse);
  }
  plan_cache<T>().clear();
}

}  // namespace

void forget_fft_plans() {
  const std::lock_guard lock(planner_lock());
  forget_plans<float>();
  forget_plans<double>();
}

Index good_fft_size(Index n) {
  for (Index size = std::max<Index>(2, n + n % 2);; size += 2) {
    Index rest = size;
    for (const Index prime : {2, 3, 5, 7})
      while (rest % prime == 0) rest /= prime;
    if (rest == 1) return size;
  }
}

template <class T>
RealFft<T>::RealFft(Index length, Planner planner) : length_(length) {
  SUBQUAD_CHECK(length >= 2 && length % 2 == 0 && length < (Index{1} << 31),
                "a transform of length {}", length);
  const Plans plans = find_plans<T>(length, planner);
  forward_ = plans.forward;
  inverse_ = plans.inverse;
}

template <class T>
void RealFft<T>::forward(const T* x, T* spectrum) const {
  // FFTW's interface has no const, but an out-of-place r2c keeps its input.
  Fftw<T>::run(forward_, const_cast<T*>(x), reinterpret_cast<typename Fftw<T>::Complex*>(spectrum));
}

template <class T>
void RealFft<T>::inverse(T* spectrum, T* x) const {
  Fftw<T>::run(inverse_, reinterpret_cast<typename Fftw<T>::Complex*>(spectrum), x);
}

template class RealFft<float>;
template class RealFft<double>;

}  // namespace subquad
