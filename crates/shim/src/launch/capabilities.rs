//! Capabilities by name.

use stackd_core::isolation::{self, Profile};
use stackd_core::spec::Restrictions;

/// The names that [`Profile::capabilities`] may use, and the kernel's numbers for them.
const NUMBERS: &[(&str, u32)] = &[
    ("CHOWN", 0),
    ("DAC_OVERRIDE", 1),
    ("DAC_READ_SEARCH", 2),
    ("FOWNER", 3),
    ("FSETID", 4),
    ("KILL", 5),
    ("SETGID", 6),
    ("SETUID", 7),
    ("SETPCAP", 8),
    ("NET_BIND_SERVICE", 10),
];

/// The greatest number that a kernel may know.
const GREATEST: u32 = 63;

/// The set of a profile without what a stack does without, as bits.
pub(crate) fn set_of(profile: Profile, restrictions: &Restrictions) -> u64 {
    isolation::capabilities(profile, restrictions)
        .filter_map(|name| NUMBERS.iter().find(|(known, _)| *known == name))
        .fold(0, |set, (_, number)| set | 1 << number)
}

/// Takes everything but `keep` from what this process and its children can ever have.
pub(crate) fn bound(keep: u64) -> std::io::Result<()> {
    for number in (0..=GREATEST).filter(|n| keep & 1 << n == 0) {
        match crate::sys::prctl(libc::PR_CAPBSET_DROP, number.into(), 0) {
            Ok(()) => {}
            // Past the last that this kernel knows.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Leaves this process only `keep`, and nothing to pass on.
pub(crate) fn reduce(keep: u64) -> std::io::Result<()> {
    const CLEAR_ALL: u64 = 4;
    crate::sys::prctl(libc::PR_CAP_AMBIENT, CLEAR_ALL, 0)?;
    let set = rustix::thread::CapabilitySet::from_bits_retain(keep);
    let sets = rustix::thread::CapabilitySets {
        effective: set,
        permitted: set,
        inheritable: rustix::thread::CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_of_a_profile_has_a_number() {
        let whole = Restrictions::default();
        for profile in [Profile::Default, Profile::Strict] {
            let names = profile.capabilities().len();
            assert_eq!(set_of(profile, &whole).count_ones() as usize, names, "{profile:?}");
        }
        assert_eq!(set_of(Profile::Strict, &whole), 1 << 10);
        let less = Restrictions {
            drop_capabilities: ["CHOWN", "KILL"].map(str::to_owned).into(),
            ..whole.clone()
        };
        let gone = set_of(Profile::Default, &whole) & !set_of(Profile::Default, &less);
        assert_eq!(gone, 1 << 0 | 1 << 5);
    }
}
