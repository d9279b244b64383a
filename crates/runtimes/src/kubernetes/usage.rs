//! What a stack uses, where the cluster has the metrics API. The cluster counts memory; what it
//! does not count for a pod (CPU time, processes, disk) is 0.

use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use stackd_core::quantity::Quantity;
use stackd_core::runtime::{ErrorKind, Usage};
use stackd_core::{RuntimeError, StackId};

use super::inner::Inner;

impl Inner {
    /// What a stack uses right now.
    pub(super) async fn usage(&self, id: StackId) -> Result<Usage, RuntimeError> {
        self.container(id, None)?;
        let kind = GroupVersionKind::gvk("metrics.k8s.io", "v1beta1", "PodMetrics");
        let resource = ApiResource::from_gvk_with_plural(&kind, "pods");
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.config.namespace, &resource);
        let name = id.to_string();
        let call = async {
            match api.get(&name).await {
                Ok(found) => Ok(Some(found)),
                // Also where nothing answers for this API at all.
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
                Err(error) => Err(error),
            }
        };
        let found = self.call(&format!("asking what {id} uses"), call).await?;
        let Some(metrics) = found else {
            let text = "the cluster has no figures for this stack: it has no metrics API, or it \
                        has not looked at the stack yet";
            return Err(RuntimeError::open(ErrorKind::Rejected, "NoMetrics", text));
        };
        let containers = metrics.data.get("containers").and_then(|list| list.as_array());
        let memory = containers.into_iter().flatten().filter_map(|container| {
            let text = container.get("usage")?.get("memory")?.as_str()?;
            Some(text.parse::<Quantity>().ok()?.units())
        });
        Ok(Usage { memory_bytes: memory.sum(), ..Usage::default() })
    }
}
