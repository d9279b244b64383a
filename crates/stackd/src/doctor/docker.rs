//! What a Docker engine gives, in the words of the driver that uses it.

use stackd_core::spec::Requested;
use stackd_runtimes::docker::{Finding, Fit, survey};

use super::Check;
use crate::config::Config;

pub(super) async fn checks(config: &Config, size: &Requested) -> Vec<Check> {
    crate::client::use_ring();
    let docker = crate::serve::docker_config(config, &config.data_dir);
    let check = |finding: Finding| match finding.fit {
        Fit::Good => Check::ok(finding.name, finding.found),
        Fit::Less => Check::warning(finding.name, finding.found, finding.fix),
        Fit::Not => Check::failed(finding.name, finding.found, finding.fix),
    };
    survey(&docker, &config.engine.room, size).await.into_iter().map(check).collect()
}
