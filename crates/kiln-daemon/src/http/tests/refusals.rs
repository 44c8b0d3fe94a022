//! Bad requests and their exact answers.

use std::fmt::Write as _;

use axum::body::Body;
use axum::http::Method;
use expect_test::expect;

use super::Server;

pub(super) const V: &str = "api-version=2024-02-01";

/// `METHOD target`, and the answer.
async fn ask_all(server: &Server, asked: &[&str]) -> String {
    let mut shown = String::new();
    for line in asked {
        let (method, target) = line.split_once(' ').unwrap();
        let seen = server.ask(method.parse().unwrap(), target).await;
        let _ = writeln!(shown, "{line}\n{}", server.show(&seen));
    }
    shown
}

#[tokio::test]
async fn versions() {
    let server = Server::open().await;
    expect![[r#"
        GET B/imageTemplates/t
        400 Bad Request
        {
          "error": {
            "code": "MissingApiVersionParameter",
            "message": "The api-version query parameter (?api-version=) is required for all requests."
          }
        }

        GET B/imageTemplates/t?api-version=
        400 Bad Request
        {
          "error": {
            "code": "MissingApiVersionParameter",
            "message": "The api-version query parameter (?api-version=) is required for all requests."
          }
        }

        GET B/imageTemplates/t?api-version=latest
        400 Bad Request
        {
          "error": {
            "code": "InvalidApiVersionParameter",
            "message": "The api-version 'latest' is invalid. The supported versions are '2025-10-01, 2024-02-01, 2023-07-01, 2022-07-01, 2022-02-14, 2021-10-01, 2020-02-14, 2019-05-01-preview, 2019-02-01-preview, 2018-02-01-preview'."
          }
        }

        GET B/imageTemplates/t?api-version=2024-02-02
        400 Bad Request
        {
          "error": {
            "code": "NoRegisteredProviderFound",
            "message": "No registered resource provider found for API version '2024-02-02' and type 'imageTemplates'. The supported api-versions are '2025-10-01, 2024-02-01, 2023-07-01, 2022-07-01, 2022-02-14, 2021-10-01, 2020-02-14, 2019-05-01-preview, 2019-02-01-preview, 2018-02-01-preview'."
          }
        }

        GET B/imageTemplates/t?api-version=2024-02-01-preview
        400 Bad Request
        {
          "error": {
            "code": "NoRegisteredProviderFound",
            "message": "No registered resource provider found for API version '2024-02-01-preview' and type 'imageTemplates'. The supported api-versions are '2025-10-01, 2024-02-01, 2023-07-01, 2022-07-01, 2022-02-14, 2021-10-01, 2020-02-14, 2019-05-01-preview, 2019-02-01-preview, 2018-02-01-preview'."
          }
        }

        GET B/imageTemplates/t?api-version=2024-02-01&API-VERSION=2020-02-14
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestUri",
            "message": "The request's address is not valid: the query gives 'api-version' more than once, with different values."
          }
        }

        GET B/imageTemplates/t?api-version=%3Cscript%3E%0d%0a
        400 Bad Request
        {
          "error": {
            "code": "InvalidApiVersionParameter",
            "message": "The api-version '<script>??' is invalid. The supported versions are '2025-10-01, 2024-02-01, 2023-07-01, 2022-07-01, 2022-02-14, 2021-10-01, 2020-02-14, 2019-05-01-preview, 2019-02-01-preview, 2018-02-01-preview'."
          }
        }

    "#]].assert_eq(
        &ask_all(
            &server,
            &[
                "GET B/imageTemplates/t",
                "GET B/imageTemplates/t?api-version=",
                "GET B/imageTemplates/t?api-version=latest",
                "GET B/imageTemplates/t?api-version=2024-02-02",
                "GET B/imageTemplates/t?api-version=2024-02-01-preview",
                "GET B/imageTemplates/t?api-version=2024-02-01&API-VERSION=2020-02-14",
                "GET B/imageTemplates/t?api-version=%3Cscript%3E%0d%0a",
            ],
        )
        .await,
    );
}

#[tokio::test]
async fn what_is_not_there() {
    let server = Server::open().await;
    expect![[r#"
        GET B/imageTemplates/t?api-version=2024-02-01
        404 Not Found
        {
          "error": {
            "code": "ResourceNotFound",
            "message": "The Resource 'Microsoft.VirtualMachineImages/imageTemplates/t' under resource group 'kiln' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
          }
        }

        GET B/imageTemplates/t?Api-Version=2020-02-14&t=1&c=2
        404 Not Found
        {
          "code": "ResourceNotFound",
          "message": "The Resource 'Microsoft.VirtualMachineImages/imageTemplates/t' under resource group 'kiln' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
        }

        POST B/imageTemplates/t/run?api-version=2024-02-01
        404 Not Found
        {
          "error": {
            "code": "ResourceNotFound",
            "message": "The Resource 'Microsoft.VirtualMachineImages/imageTemplates/t' under resource group 'kiln' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
          }
        }

        POST B/imageTemplates/t/cancel?api-version=2020-02-14
        404 Not Found
        {
          "code": "ResourceNotFound",
          "message": "The Resource 'Microsoft.VirtualMachineImages/imageTemplates/t' under resource group 'kiln' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
        }

        DELETE B/imageTemplates/t?api-version=2024-02-01
        204 No Content

        GET B/imageTemplates/t/runOutputs?api-version=2024-02-01
        404 Not Found
        {
          "error": {
            "code": "ResourceNotFound",
            "message": "The Resource 'Microsoft.VirtualMachineImages/imageTemplates/t' under resource group 'kiln' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
          }
        }

        GET B/imageTemplates/t/runOutputs/o?api-version=2024-02-01
        404 Not Found
        {
          "error": {
            "code": "ResourceNotFound",
            "message": "The Resource 'Microsoft.VirtualMachineImages/imageTemplates/t' under resource group 'kiln' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
          }
        }

        GET B/imageTemplates/t/triggers/o?api-version=2024-02-01
        404 Not Found
        {
          "error": {
            "code": "ResourceNotFound",
            "message": "The Resource 'Microsoft.VirtualMachineImages/imageTemplates/t' under resource group 'kiln' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
          }
        }

        DELETE B/imageTemplates/t/triggers/o?api-version=2024-02-01
        204 No Content

        GET /subscriptions/S/resourceGroups/nogroup/providers/Microsoft.VirtualMachineImages/imageTemplates?api-version=2024-02-01
        404 Not Found
        {
          "error": {
            "code": "ResourceGroupNotFound",
            "message": "Resource group 'nogroup' could not be found."
          }
        }

        GET /subscriptions/S/resourceGroups/nogroup/providers/Microsoft.VirtualMachineImages/imageTemplates/t?api-version=2024-02-01
        404 Not Found
        {
          "error": {
            "code": "ResourceGroupNotFound",
            "message": "Resource group 'nogroup' could not be found."
          }
        }

        GET /subscriptions/nosub/resourceGroups/kiln/providers/Microsoft.VirtualMachineImages/imageTemplates/t?api-version=2024-02-01
        404 Not Found
        {
          "error": {
            "code": "SubscriptionNotFound",
            "message": "The subscription 'nosub' could not be found."
          }
        }

        GET /subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local/operations/none?api-version=2024-02-01
        404 Not Found
        {
          "error": {
            "code": "ResourceNotFound",
            "message": "There is no operation 'none' in location 'local'."
          }
        }

        GET B/imageTemplates/t/start?api-version=2024-02-01
        404 Not Found
        {
          "error": {
            "code": "InvalidResourceType",
            "message": "The resource type 'imageTemplates/start' could not be found in the namespace 'Microsoft.VirtualMachineImages'. The supported api-versions are '2025-10-01, 2024-02-01, 2023-07-01, 2022-07-01, 2022-02-14, 2021-10-01, 2020-02-14, 2019-05-01-preview, 2019-02-01-preview, 2018-02-01-preview'."
          }
        }

        GET /subscriptions/S/nothing?api-version=2024-02-01
        404 Not Found
        {
          "error": {
            "code": "InvalidResourceType",
            "message": "The resource type 'nothing' could not be found in the namespace 'Microsoft.Resources'."
          }
        }

        GET /subscriptions/S/resourceGroups/kiln/providers/Microsoft.Compute/images/x?api-version=2024-02-01
        404 Not Found
        {
          "error": {
            "code": "InvalidResourceNamespace",
            "message": "The resource namespace 'Microsoft.Compute' is invalid."
          }
        }

        GET /favicon.ico
        404 Not Found
        {
          "error": {
            "code": "MissingSubscription",
            "message": "The request did not have a subscription or a valid tenant level resource provider."
          }
        }

        GET /kiln/nothing
        404 Not Found
        {
          "error": {
            "code": "NotFound",
            "message": "There is nothing at this path."
          }
        }

    "#]].assert_eq(
        &ask_all(&server, &[
            "GET B/imageTemplates/t?api-version=2024-02-01",
            "GET B/imageTemplates/t?Api-Version=2020-02-14&t=1&c=2",
            "POST B/imageTemplates/t/run?api-version=2024-02-01",
            "POST B/imageTemplates/t/cancel?api-version=2020-02-14",
            "DELETE B/imageTemplates/t?api-version=2024-02-01",
            "GET B/imageTemplates/t/runOutputs?api-version=2024-02-01",
            "GET B/imageTemplates/t/runOutputs/o?api-version=2024-02-01",
            "GET B/imageTemplates/t/triggers/o?api-version=2024-02-01",
            "DELETE B/imageTemplates/t/triggers/o?api-version=2024-02-01",
            "GET /subscriptions/S/resourceGroups/nogroup/providers/Microsoft.VirtualMachineImages/imageTemplates?api-version=2024-02-01",
            "GET /subscriptions/S/resourceGroups/nogroup/providers/Microsoft.VirtualMachineImages/imageTemplates/t?api-version=2024-02-01",
            "GET /subscriptions/nosub/resourceGroups/kiln/providers/Microsoft.VirtualMachineImages/imageTemplates/t?api-version=2024-02-01",
            "GET /subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local/operations/none?api-version=2024-02-01",
            "GET B/imageTemplates/t/start?api-version=2024-02-01",
            "GET /subscriptions/S/nothing?api-version=2024-02-01",
            "GET /subscriptions/S/resourceGroups/kiln/providers/Microsoft.Compute/images/x?api-version=2024-02-01",
            "GET /favicon.ico",
            "GET /kiln/nothing",
        ])
        .await,
    );
}

#[tokio::test]
async fn methods_and_paths() {
    let server = Server::open().await;
    let long = format!("GET B/imageTemplates/{}?{V}", "x".repeat(300));
    expect![[r#"
        GET B/imageTemplates/t/run?api-version=2024-02-01
        405 Method Not Allowed
        allow: POST, OPTIONS
        {
          "error": {
            "code": "MethodNotAllowed",
            "message": "The requested resource does not support http method 'GET'."
          }
        }

        POST B/imageTemplates/t?api-version=2020-02-14
        405 Method Not Allowed
        allow: GET, HEAD, PUT, PATCH, DELETE, OPTIONS
        {
          "code": "MethodNotAllowed",
          "message": "The requested resource does not support http method 'POST'."
        }

        BREW B/imageTemplates/t?api-version=2024-02-01
        405 Method Not Allowed
        allow: GET, HEAD, PUT, PATCH, DELETE, OPTIONS
        {
          "error": {
            "code": "MethodNotAllowed",
            "message": "The requested resource does not support http method 'BREW'."
          }
        }

        OPTIONS B/imageTemplates/t?api-version=2024-02-01
        204 No Content
        allow: GET, HEAD, PUT, PATCH, DELETE, OPTIONS

        OPTIONS *
        204 No Content
        allow: GET, HEAD, PUT, PATCH, POST, DELETE, OPTIONS

        HEAD B/imageTemplates/t?api-version=2024-02-01
        404 Not Found

        GET B/imageTemplates/%2e%2e/x?api-version=2024-02-01
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestUri",
            "message": "The request's address is not valid: a segment of the path is '.' or '..'."
          }
        }

        GET B/imageTemplates/a%2f..%2fb?api-version=2024-02-01
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestUri",
            "message": "The request's address is not valid: a segment of the path holds a slash, a backslash or a control character."
          }
        }

        GET B/imageTemplates/a%00?api-version=2024-02-01
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestUri",
            "message": "The request's address is not valid: a segment of the path holds a slash, a backslash or a control character."
          }
        }

        GET B/imageTemplates/a%ff?api-version=2024-02-01
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestUri",
            "message": "The request's address is not valid: its percent-encoded bytes are not UTF-8."
          }
        }

        GET B/imageTemplates/a%4?api-version=2024-02-01
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestUri",
            "message": "The request's address is not valid: a percent sign is not followed by two hexadecimal digits."
          }
        }

        GET B/imageTemplates/t?api-version=%ff
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestUri",
            "message": "The request's address is not valid: its percent-encoded bytes are not UTF-8."
          }
        }

        GET B/imageTemplates?api-version=2024-02-01&$skipToken=abc
        400 Bad Request
        {
          "error": {
            "code": "InvalidSkipToken",
            "message": "The $skipToken is not one that this list gave. Begin the list again without it."
          }
        }

        GET B/imageTemplates?api-version=2024-02-01&$skipToken=MS4uLy4u
        400 Bad Request
        {
          "error": {
            "code": "InvalidSkipToken",
            "message": "The $skipToken is not one that this list gave. Begin the list again without it."
          }
        }

        GET B/imageTemplates?api-version=2024-02-01&$skipToken=MA
        400 Bad Request
        {
          "error": {
            "code": "InvalidSkipToken",
            "message": "The $skipToken is not one that this list gave. Begin the list again without it."
          }
        }

        GET B/imageTemplates?api-version=2024-02-01&$skipToken=%27
        400 Bad Request
        {
          "error": {
            "code": "InvalidSkipToken",
            "message": "The $skipToken is not one that this list gave. Begin the list again without it."
          }
        }

        GET B/imageTemplates/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx?api-version=2024-02-01
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestUri",
            "message": "The request's address is not valid: a segment of the path is longer than 255 bytes."
          }
        }

    "#]].assert_eq(
        &ask_all(
            &server,
            &[
                "GET B/imageTemplates/t/run?api-version=2024-02-01",
                "POST B/imageTemplates/t?api-version=2020-02-14",
                "BREW B/imageTemplates/t?api-version=2024-02-01",
                "OPTIONS B/imageTemplates/t?api-version=2024-02-01",
                "OPTIONS *",
                "HEAD B/imageTemplates/t?api-version=2024-02-01",
                "GET B/imageTemplates/%2e%2e/x?api-version=2024-02-01",
                "GET B/imageTemplates/a%2f..%2fb?api-version=2024-02-01",
                "GET B/imageTemplates/a%00?api-version=2024-02-01",
                "GET B/imageTemplates/a%ff?api-version=2024-02-01",
                "GET B/imageTemplates/a%4?api-version=2024-02-01",
                "GET B/imageTemplates/t?api-version=%ff",
                "GET B/imageTemplates?api-version=2024-02-01&$skipToken=abc",
                "GET B/imageTemplates?api-version=2024-02-01&$skipToken=MS4uLy4u",
                "GET B/imageTemplates?api-version=2024-02-01&$skipToken=MA",
                "GET B/imageTemplates?api-version=2024-02-01&$skipToken=%27",
                &long,
            ],
        )
        .await,
    );
}

/// A PUT with these headers and this body.
async fn put(server: &Server, headers: &[(&str, &str)], body: impl Into<Body>) -> String {
    let mut request = server.request(Method::PUT, &format!("B/imageTemplates/t?{V}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let seen = server.send(request.body(body.into()).unwrap()).await;
    server.show(&seen)
}

#[tokio::test]
async fn bodies() {
    let server = Server::open().await;
    let json = [("content-type", "application/json")];
    let mut shown = String::new();
    for (what, headers, body) in [
        ("a form", &[("content-type", "application/x-www-form-urlencoded")][..], b"a=b".to_vec()),
        ("UTF-16", &[("content-type", "application/json; charset=utf-16")], b"{}".to_vec()),
        ("compressed", &[("content-type", "application/json"), ("content-encoding", "gzip")], b"x".to_vec()),
        ("nothing", &json, Vec::new()),
        ("blanks", &json, b" \r\n".to_vec()),
        ("not UTF-8", &json, b"{\"location\": \"\xff\"}".to_vec()),
        ("not JSON", &json, b"{\"location\": ".to_vec()),
        ("a list", &json, b"[]".to_vec()),
        ("too deep", &json, "[".repeat(100_000).into_bytes()),
        ("too large", &json, vec![b' '; (4 << 20) + 1]),
        ("missing fields", &json, b"{}".to_vec()),
    ] {
        let _ = writeln!(shown, "{what}\n{}", put(&server, headers, body).await);
    }
    expect![[r#"
        a form
        415 Unsupported Media Type
        {
          "error": {
            "code": "UnsupportedMediaType",
            "message": "The content media type 'application/x-www-form-urlencoded' is not supported. Only 'application/json' is supported."
          }
        }

        UTF-16
        415 Unsupported Media Type
        {
          "error": {
            "code": "UnsupportedMediaType",
            "message": "The charset 'utf-16' is not supported. Only 'utf-8' is supported."
          }
        }

        compressed
        415 Unsupported Media Type
        {
          "error": {
            "code": "UnsupportedMediaType",
            "message": "A compressed body is not supported: send it without Content-Encoding."
          }
        }

        nothing
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestContent",
            "message": "The request content was empty; a JSON object is expected."
          }
        }

        blanks
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestContent",
            "message": "The request content was empty; a JSON object is expected."
          }
        }

        not UTF-8
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestContent",
            "message": "The request content is not UTF-8."
          }
        }

        not JSON
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestContent",
            "message": "The request content was invalid and could not be deserialized: 'line 1: not JSON: expected value after colon in object property'.",
            "details": [
              {
                "code": "Syntax",
                "message": "line 1, column 14: not JSON: expected value after colon in object property"
              }
            ]
          }
        }

        a list
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestContent",
            "message": "The request content was invalid and could not be deserialized: 'line 1: the body is a list, an image template is an object'.",
            "details": [
              {
                "code": "NotATemplate",
                "message": "line 1, column 1: the body is a list, an image template is an object"
              }
            ]
          }
        }

        too deep
        400 Bad Request
        {
          "error": {
            "code": "InvalidRequestContent",
            "message": "The request content was invalid and could not be deserialized: 'line 1: objects and lists are nested more than 64 levels deep'.",
            "details": [
              {
                "code": "TooDeep",
                "message": "line 1, column 513: objects and lists are nested more than 64 levels deep; no image template needs more than nine"
              }
            ]
          }
        }

        too large
        413 Payload Too Large
        {
          "error": {
            "code": "RequestContentTooLarge",
            "message": "The request content size exceeds the maximum size of 4 MiB."
          }
        }

        missing fields
        400 Bad Request
        {
          "error": {
            "code": "ValidationFailed",
            "message": "Validation failed: 'ImageTemplate': Missing field 'location'. Please review http://aka.ms/azvmimagebuildertmplref for details on fields required in the Image Builder Template.",
            "details": [
              {
                "code": "MissingField",
                "message": "line 1, column 1: Validation failed: 'ImageTemplate': Missing field 'location'"
              },
              {
                "code": "MissingField",
                "message": "line 1, column 1: Validation failed: 'ImageTemplate': Missing field 'properties'"
              }
            ]
          }
        }

    "#]].assert_eq(&shown);
    // The length need not be known beforehand.
    let parts = (0..5).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 20]));
    let stream = Body::from_stream(futures_util::stream::iter(parts));
    assert!(put(&server, &json, stream).await.starts_with("413 "));
}
