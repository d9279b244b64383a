//! What a stack may do less than others, tried from inside it.

use stackd_core::isolation::{self, Profile};
use stackd_core::spec::{Restrictions, VolumeMedium};

use super::inside::get;
use super::{Real, Subject};

/// The containers' own file system cannot be written where the spec says so; volumes can.
pub async fn a_read_only_root_cannot_be_written(subject: &Subject) {
    let Some(Real { sample, .. }) = &subject.real else { return };
    for read_only_root in [false, true] {
        let spec = subject.spec().volume("data", VolumeMedium::Disk, "/data");
        let spec = spec.restricted(Restrictions { read_only_root, ..Restrictions::default() });
        let (id, _) = subject.running(spec.build()).await;
        let (text, code) = subject.exec(id, &[sample, "touch", "/written"], None).await;
        assert_eq!(code != 0, read_only_root, "{text}");
        assert_eq!(text.contains("Read-only file system"), read_only_root, "{text}");
        let (text, code) = subject.exec(id, &[sample, "touch", "/data/written"], None).await;
        assert_eq!(code, 0, "a volume can be written: {text}");
        subject.remove(id).await;
    }
}

/// The bits of these capabilities, as the kernel shows them.
fn bits<'a>(names: impl Iterator<Item = &'a str>) -> u64 {
    let bit = |name: &str| match name {
        "CHOWN" => 0,
        "DAC_OVERRIDE" => 1,
        "FOWNER" => 3,
        "FSETID" => 4,
        "KILL" => 5,
        "SETGID" => 6,
        "SETUID" => 7,
        "SETPCAP" => 8,
        "NET_BIND_SERVICE" => 10,
        other => panic!("no stack has {other}"),
    };
    names.map(|name| 1 << bit(name)).sum()
}

/// A stack's root, and whoever runs a command in it, has the capabilities that its profile gives
/// and its restrictions leave; and it still listens on a low port without any.
pub async fn dropped_capabilities_are_not_there(subject: &Subject) {
    let Some(Real { sample, address }) = &subject.real else { return };
    let all = Profile::Default.capabilities();
    for dropped in [&[][..], &["CHOWN", "SETUID"], all] {
        let drop_capabilities = dropped.iter().map(|name| (*name).to_owned()).collect();
        let restrictions = Restrictions { drop_capabilities, ..Restrictions::default() };
        let expected = bits(isolation::capabilities(Profile::Default, &restrictions));
        let spec = subject.spec().restricted(restrictions).build();
        let (id, ports) = subject.running(spec).await;
        let own = get(*address, ports[0].node_port, "/json").await;
        let (others, _) = subject.exec(id, &[sample, "json"], None).await;
        for (who, facts) in [("the container", &own), ("a command in it", &others)] {
            let has = facts.split_once("\"capabilities\":\"").expect("it tells them").1;
            let has = has.split_once('"').expect("a text").0;
            let has = u64::from_str_radix(has, 16).expect("a number");
            assert_eq!(has, expected, "{who} without {dropped:?}");
        }
        subject.remove(id).await;
    }
}

/// A lower limit of processes holds, where the runtime holds any.
pub async fn a_lower_limit_of_processes_holds(subject: &Subject) {
    let Some(Real { sample, .. }) = &subject.real else { return };
    if !subject.runtime.capabilities().enforcement.pids_limit {
        return;
    }
    const LOWER: u32 = 16;
    for pids_limit in [None, Some(LOWER)] {
        let restrictions = Restrictions { pids_limit, ..Restrictions::default() };
        let (id, _) = subject.running(subject.spec().restricted(restrictions).build()).await;
        let (text, _) = subject.exec(id, &[sample, "probe", "fork-bomb"], None).await;
        let count = text.strip_prefix("contained ").and_then(|text| text.split_once(' '));
        let count: u32 = count.and_then(|(count, _)| count.parse().ok()).expect(&text);
        assert_eq!(count < LOWER, pids_limit.is_some(), "{text}");
        assert!(count > 0, "{text}");
        subject.remove(id).await;
    }
}
