//! What every runtime promises, kept with real pods of the sample image.

use std::sync::Arc;

use libtest_mimic::Trial;
use stackd_testkit::runtime_contract::{Real, Subject};
use stackd_testkit::sample;

use crate::support::{Bed, IMAGE, keep};

pub(crate) fn all(trials: &mut Vec<Trial>) {
    for (name, promise) in stackd_testkit::runtime_contract!(@table) {
        trials.push(Trial::test(format!("contract::{name}"), move || {
            crate::run(async {
                let bed = Bed::shared();
                let subject = Subject {
                    runtime: Arc::new(bed.open().await),
                    image: IMAGE.to_owned(),
                    real: Some(Real {
                        sample: sample::PROGRAM.to_owned(),
                        address: bed.cluster.node_address(1).into(),
                    }),
                    keep: keep(bed),
                };
                promise(&subject).await;
            });
            Ok(())
        }));
    }
}
