//! Finds the memory limit that the kernel sets for this process. It is the limit of its control groups, which is a container's
//! memory limit.
//!
//! Must never fail: if no limit can be found, there is none.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Returns the lowest memory limit of this process's control groups, of either version, in bytes.
pub fn memory_max_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    lowest(&groups, |path| fs::read_to_string(path).ok())
}

/// Returns the lowest limit. `groups` is `/proc/self/cgroup`: lines of `number:controllers:path`, of which version 2 has one,
/// without controllers. A group's limit also holds for the groups below it, so this asks each up to the root. In a container the
/// path can be the host's, while the root that is mounted there is the container's own group. Then only the root answers.
fn lowest(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        match controllers {
            "" => Some((PathBuf::from(ROOT), "memory.max", path)),
            _ if controllers.split(',').any(|name| name == "memory") => {
                Some((Path::new(ROOT).join("memory"), "memory.limit_in_bytes", path))
            }
            _ => None,
        }
    });
    limits
        .flat_map(|(root, file, path)| {
            let group = root.join(path.trim_start_matches('/'));
            let up = group.ancestors().take_while(|folder| folder.starts_with(&root));
            // No limit is "max" in version 2, and a number near 2^63 in version 1.
            up.filter_map(|folder| read(&folder.join(file))?.trim().parse().ok()).collect::<Vec<u64>>()
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn limit(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        let files: BTreeMap<&Path, &str> = files.iter().map(|(path, text)| (Path::new(path), *text)).collect();
        lowest(groups, |path| files.get(path).map(|text| (*text).to_owned()))
    }

    #[test]
    fn the_lowest_limit_from_the_group_to_the_root_counts() {
        let pod = [
            ("/sys/fs/cgroup/kube/memory.max", "max\n"),
            ("/sys/fs/cgroup/kube/pod/memory.max", "268435456\n"),
            ("/sys/fs/cgroup/kube/pod/app/memory.max", "536870912\n"),
        ];
        assert_eq!(limit("0::/kube/pod/app\n", &pod), Some(256 << 20));
        assert_eq!(limit("0::/kube\n", &pod), None);
    }

    #[test]
    fn inside_of_a_container_the_root_is_its_own_group() {
        assert_eq!(limit("0::/\n", &[("/sys/fs/cgroup/memory.max", "134217728\n")]), Some(128 << 20));
        let one = [("/sys/fs/cgroup/memory/memory.limit_in_bytes", "134217728\n")];
        assert_eq!(limit("3:cpu,cpuacct:/docker/x\n2:hugetlb,memory:/docker/x\n0::/docker/x\n", &one), Some(128 << 20));
    }

    #[test]
    fn what_is_not_understood_is_no_limit() {
        let odd = [("/sys/fs/cgroup/memory.max", "a lot\n")];
        for groups in ["", "0\n", "0::/../..\n", "1:memory\n", ":::\n"] {
            assert_eq!(limit(groups, &odd), None, "{groups}");
        }
    }
}
