//! THE API: paths, status codes, bodies. Nobody else knows HTTP.
//!
//! ```text
//!  request ─► front: ids, base address, catch-panic ─► Route::parse ─► method? ─► who is it, may they?
//!                                                                                      │
//!         images (the contract) · environment · signin · own  ◄────────────────────────┘
//!                │ Answer
//!                ▼
//!  front: an error in the version's shape, headers, a row of activity for a change
//! ```
//! One door: the router has no routes but a fallback, for ARM's paths ignore case and repeated slashes.
//! Every answer from 400 on is an ARM error with a code, a panic's too.

mod activity;
mod answer;
mod artifacts;
mod body;
mod call;
mod environment;
mod files;
mod front;
mod host;
mod images;
mod inputs;
mod lines;
mod logs;
mod openapi;
mod own;
mod paging;
mod path;
mod ranges;
mod route;
mod runs;
mod signin;
mod version;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request};

use crate::daemon::Daemon;

/// All of the server. A request carries its [`Peer`](crate::serve::Peer) as an extension.
pub fn router(daemon: Arc<Daemon>) -> Router {
    Router::new().fallback(move |request: Request<Body>| {
        let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
        let answer = front::answer(Arc::clone(&daemon), request);
        async move {
            if !changes {
                return answer.await;
            }
            // On a task of its own: a client that hangs up leaves no half of a change.
            tokio::spawn(answer).await.unwrap_or_else(|_| front::unanswered())
        }
    })
}

#[cfg(test)]
mod tests;
