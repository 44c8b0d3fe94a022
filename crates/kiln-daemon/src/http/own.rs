//! Kiln's own paths, beside the contract: runs, logs, artifacts, inputs, the host.

use std::sync::Arc;

use super::answer::{Answer, ArmError};
use super::call::Call;
use super::route::OwnRoute;
use crate::daemon::Daemon;

pub async fn answer(_daemon: &Arc<Daemon>, _route: OwnRoute, _call: Call) -> Answer {
    Err(ArmError::not_found("NotFound", "not here yet"))
}
