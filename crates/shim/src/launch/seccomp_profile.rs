//! The filter of system calls in the words of container engines, for containers that this program
//! does not start itself. It is made from the same rules as the filter that it does load.
//!
//! Arguments are compared in their low 32 bits alone, as the kernel reads them: a comparison of all
//! 64 could be passed by setting one that the kernel ignores.

use serde_json::{Value, json};

use super::seccomp::{LOOKED_AT, Rule, always_allowed, rule};

const LOW: u64 = 0xffff_ffff;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &str = "SCMP_ARCH_X86_64";
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &str = "SCMP_ARCH_AARCH64";

/// The profile, as `--security-opt seccomp=` takes it.
pub fn profile() -> Value {
    let plain: Vec<&str> = always_allowed().map(|(name, _)| bare(name)).collect();
    let mut calls = vec![json!({"names": plain, "action": "SCMP_ACT_ALLOW"})];
    for (name, number) in LOOKED_AT {
        let names = [bare(name)];
        match rule(*number) {
            Rule::Allow => calls.push(json!({"names": names, "action": "SCMP_ACT_ALLOW"})),
            Rule::Refuse(errno) => {
                calls.push(json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno}));
            }
            Rule::WithoutBits(bits) => calls.push(allow(names, 0, u64::from(bits), 0)),
            Rule::Only(place, values) => {
                let value = |value: &u32| allow(names, place, LOW, u64::from(*value));
                calls.extend(values.iter().map(value));
            }
            Rule::Not(place, values) => {
                let block = |(mask, value)| allow(names, place, mask, value);
                calls.extend(all_but(values).into_iter().map(block));
            }
        }
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": [ARCHITECTURE],
        "syscalls": calls,
    })
}

fn bare(name: &'static str) -> &'static str {
    name.strip_prefix("SYS_").unwrap_or(name)
}

/// Allowed where the argument has this value under this mask.
fn allow(names: [&str; 1], place: u32, mask: u64, value: u64) -> Value {
    json!({
        "names": names,
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": place, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}],
    })
}

/// Blocks of numbers, as masks and values, that hold every number but these. A rule can say "is",
/// and several of them "is one of", but not "is none of".
fn all_but(values: &[u32]) -> Vec<(u64, u64)> {
    fn cover(bits: u32, prefix: u32, values: &[u32], blocks: &mut Vec<(u64, u64)>) {
        let mask = if bits == 0 { 0 } else { u32::MAX << (32 - bits) };
        if !values.iter().any(|value| value & mask == prefix) {
            blocks.push((u64::from(mask), u64::from(prefix)));
        } else if bits < 32 {
            cover(bits + 1, prefix, values, blocks);
            cover(bits + 1, prefix | 1 << (31 - bits), values, blocks);
        }
    }
    let mut blocks = Vec::new();
    cover(0, 0, values, &mut blocks);
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the profile says of a call, as an engine would read it.
    fn verdict(profile: &Value, name: &str, args: [u64; 2]) -> String {
        let fits = |rule: &&Value| {
            let named = rule["names"].as_array().is_some_and(|n| n.iter().any(|n| n == name));
            named
                && rule["args"].as_array().into_iter().flatten().all(|arg| {
                    let place = usize::try_from(arg["index"].as_u64().unwrap()).unwrap();
                    let mask = arg["value"].as_u64().unwrap();
                    args[place] & mask == arg["valueTwo"].as_u64().unwrap()
                })
        };
        let rule = profile["syscalls"].as_array().unwrap().iter().find(fits);
        let action = rule.map_or(&profile["defaultAction"], |rule| &rule["action"]);
        action.as_str().unwrap().to_owned()
    }

    #[test]
    fn it_says_what_the_loaded_filter_says() {
        let profile = profile();
        let (allow, refuse) = ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO");
        for (name, args, expected) in [
            ("read", [0, 0], allow),
            ("mount", [0, 0], refuse),
            ("bpf", [0, 0], refuse),
            ("clone3", [0, 0], refuse),
            ("clone", [0x003d_0f00, 0], allow),
            ("clone", [0x1000_0011, 0], refuse),
            ("unshare", [0x400, 0], allow),
            ("unshare", [0x80, 0], refuse),
            ("socket", [2, 0], allow),
            ("socket", [40, 0], refuse),
            ("personality", [0xffff_ffff, 0], allow),
            ("personality", [0x0040_0000, 0], refuse),
            ("ioctl", [0, 0x5401], allow),
            ("ioctl", [0, 0x5413], allow),
            ("ioctl", [0, 0x5412], refuse),
            ("ioctl", [0, 0x541c], refuse),
            ("io_setup", [128, 0], refuse),
            // The kernel sees the same number.
            ("ioctl", [0, 1 << 32 | 0x5412], refuse),
        ] {
            assert_eq!(verdict(&profile, name, args), expected, "{name} {args:x?}");
        }
    }

    #[test]
    fn calls_on_which_programs_fall_back_say_that_there_is_no_such_call() {
        let profile = profile();
        for name in ["clone3", "io_setup"] {
            let named = |rule: &&Value| rule["names"] == json!([name]);
            let rule = profile["syscalls"].as_array().unwrap().iter().find(named).unwrap();
            assert_eq!(rule["errnoRet"], json!(libc::ENOSYS), "{name}");
        }
    }

    #[test]
    fn the_blocks_hold_all_numbers_but_the_named() {
        let values = [0x5412, 0x541c];
        let blocks = all_but(&values);
        let held = |n: u32| blocks.iter().filter(|(m, v)| u64::from(n) & m == *v).count();
        for n in (0..=0x6000).chain([u32::MAX, 1 << 31]) {
            assert_eq!(held(n), usize::from(!values.contains(&n)), "{n:x}");
        }
    }
}
