#include "cpu/usable_cores.h"

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <thread>

namespace gptoss::cpu {
namespace {

constexpr double kNoQuota = std::numeric_limits<double>::infinity();

int affine_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

double ratio(double quota, double period) { return quota > 0 && period > 0 ? quota / period : kNoQuota; }

// Version 2: "max 100000" or "150000 100000", microseconds in a period (Linux, Documentation/admin-guide/cgroup-v2).
double quota_v2(const std::string& group) {
  std::ifstream file(group + "/cpu.max");
  double quota = 0, period = 0;
  return file >> quota >> period ? ratio(quota, period) : kNoQuota;
}

// Version 1: two files, -1 for no quota (Linux, Documentation/scheduler/sched-bwc).
double quota_v1(const std::string& group) {
  std::ifstream quota_file(group + "/cpu.cfs_quota_us"), period_file(group + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  return quota_file >> quota && period_file >> period ? ratio(quota, period) : kNoQuota;
}

// The smallest quota of a group and those around it. Inside a container the path may be one of the host, of
// which nothing but the mount itself exists; missing files are no quota.
template <typename Quota>
double smallest(const std::string& mount, std::string path, Quota quota) {
  double least = quota(mount);
  while (path.size() > 1) {
    least = std::min(least, quota(mount + path));
    path.resize(path.rfind('/'));
  }
  return least;
}

// Lines of /proc/self/cgroup are "id:controllers:/path"; version 2 is the one without controllers.
double cpu_quota(const std::string& root) {
  const std::string mount = root + "/sys/fs/cgroup";
  double least = kNoQuota;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos || line[second + 1] != '/') continue;
    const std::string path = line.substr(second + 1);
    std::istringstream controllers(line.substr(first + 1, second - first - 1));
    if (second == first + 1) least = std::min(least, smallest(mount, path, quota_v2));
    for (std::string name; std::getline(controllers, name, ',');)
      if (name == "cpu") least = std::min(least, smallest(mount + "/cpu", path, quota_v1));
  }
  return least;
}

}  // namespace

int usable_cores(const std::string& root) {
  const int cores = affine_cores();
  return static_cast<int>(std::min(double(cores), std::ceil(cpu_quota(root))));
}

}  // namespace gptoss::cpu
