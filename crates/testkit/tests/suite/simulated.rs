//! The simulated runtime keeps what every runtime promises.

use std::sync::Arc;
use std::time::Duration;

use stackd_runtimes::simulated::{SimulatedConfig, SimulatedRuntime};
use stackd_testkit::runtime_contract::Subject;

async fn simulated() -> Subject {
    let config =
        SimulatedConfig { start_delay: Duration::from_millis(3), ..SimulatedConfig::default() };
    Subject {
        runtime: Arc::new(SimulatedRuntime::new(config)),
        image: "nginx:stable".to_owned(),
        real: None,
        keep: Box::new(()),
    }
}

stackd_testkit::runtime_contract!(simulated);
