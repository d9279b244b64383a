//! Signals by the names that images give them.

use rustix::process::Signal;

/// The number of a signal as images name it: `SIGQUIT`, `quit`, `3`, `SIGRTMIN+3`.
pub(crate) fn number(text: &str) -> Option<i32> {
    /// As C libraries count: they keep the first two for themselves.
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    const NAMES: [(&str, Signal); 30] = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("ILL", Signal::ILL),
        ("TRAP", Signal::TRAP),
        ("ABRT", Signal::ABORT),
        ("BUS", Signal::BUS),
        ("FPE", Signal::FPE),
        ("KILL", Signal::KILL),
        ("USR1", Signal::USR1),
        ("SEGV", Signal::SEGV),
        ("USR2", Signal::USR2),
        ("PIPE", Signal::PIPE),
        ("ALRM", Signal::ALARM),
        ("TERM", Signal::TERM),
        ("CHLD", Signal::CHILD),
        ("CONT", Signal::CONT),
        ("STOP", Signal::STOP),
        ("TSTP", Signal::TSTP),
        ("TTIN", Signal::TTIN),
        ("TTOU", Signal::TTOU),
        ("URG", Signal::URG),
        ("XCPU", Signal::XCPU),
        ("XFSZ", Signal::XFSZ),
        ("VTALRM", Signal::VTALARM),
        ("PROF", Signal::PROF),
        ("WINCH", Signal::WINCH),
        ("IO", Signal::IO),
        ("PWR", Signal::POWER),
        ("SYS", Signal::SYS),
    ];
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |start: i32, rest: &str| match rest {
        "" => Some(start),
        rest => start.checked_add(rest.parse().ok()?),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        real_time(RTMIN, rest).filter(|number| *number >= RTMIN)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        real_time(RTMAX, rest).filter(|number| *number >= RTMIN)
    } else {
        let named = NAMES.iter().find(|(known, _)| *known == name);
        named.map(|(_, signal)| signal.as_raw()).or_else(|| text.trim().parse().ok())
    };
    number.filter(|number| (1..=RTMAX).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read() {
        for (text, expected) in [
            ("SIGQUIT", Some(3)),
            ("quit", Some(3)),
            ("10", Some(10)),
            ("SIGWINCH", Some(28)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMIN+40", None),
            ("SIGRTMIN-1", None),
            ("0", None),
            ("65", None),
            ("SIGNOTHING", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }
}
