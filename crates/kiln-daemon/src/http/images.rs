//! The operations of Microsoft.VirtualMachineImages.

use std::sync::Arc;

use super::answer::{Answer, ArmError};
use super::call::Call;
use super::route::ImagesRoute;
use crate::daemon::Daemon;

pub async fn answer(_daemon: &Arc<Daemon>, _route: ImagesRoute, _call: Call) -> Answer {
    Err(ArmError::not_found("NotFound", "not here yet"))
}
