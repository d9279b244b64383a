use std::time::Duration;

use super::*;

#[test]
fn times_are_seconds_or_have_a_unit() {
    let read = |json: &str| serde_json::from_str::<SimulatedConfig>(json);
    let config = read(r#"{"start_delay":2,"ready_delay":"250ms","remove_delay":"3"}"#).unwrap();
    assert_eq!(config.start_delay, Duration::from_secs(2));
    assert_eq!(config.ready_delay, Duration::from_millis(250));
    assert_eq!(config.remove_delay, Duration::from_secs(3));
    assert!(read(r#"{"start_delay":"soon"}"#).is_err());
    assert!(read(r#"{"start_dely":1}"#).is_err());
}

#[test]
fn the_same_seed_and_id_draw_the_same_and_the_rate_is_kept() {
    let shared = Shared::new(SimulatedConfig { seed: 7, ..SimulatedConfig::instant() });
    let draw = |n| shared.draw(StackId::from_bits(n), 1, "fail");
    assert_eq!(draw(3).to_bits(), draw(3).to_bits());
    let low = (0..10_000).filter(|n| draw(*n) < 0.2).count();
    assert!((1_800..2_200).contains(&low), "{low} of 10000 below 0.2");
}
