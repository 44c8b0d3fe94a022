//! What clients need around the contract: endpoints, subscriptions, resource groups, providers.

use std::sync::Arc;

use super::answer::{Answer, ArmError};
use super::call::Call;
use super::route::EnvironmentRoute;
use crate::daemon::Daemon;

pub async fn answer(_daemon: &Arc<Daemon>, _route: EnvironmentRoute, _call: Call) -> Answer {
    Err(ArmError::not_found("NotFound", "not here yet"))
}
