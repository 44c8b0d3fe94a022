//! Signing in: OIDC discovery, tokens.

use std::sync::Arc;

use super::answer::{Answer, ArmError};
use super::call::Call;
use super::route::SignInRoute;
use crate::daemon::Daemon;

pub async fn answer(_daemon: &Arc<Daemon>, _route: SignInRoute, _call: Call) -> Answer {
    Err(ArmError::not_found("NotFound", "not here yet"))
}
