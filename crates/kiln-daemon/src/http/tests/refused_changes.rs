//! Templates that are refused, and askers who are, with their exact answers.

use std::fmt::Write as _;

use axum::body::Body;
use axum::http::Request;
use expect_test::expect;
use serde_json::json;

use super::refusals::V;
use super::{Server, from_afar, template};

#[tokio::test]
async fn templates() {
    let server = Server::open().await;
    let mut shown = String::new();
    let mut wrong_type = template();
    wrong_type["properties"]["distribute"][0]["type"] = json!("vhd");
    let mut unknown = template();
    unknown["properties"]["vmboot"] = json!({});
    let mut enveloped = template();
    enveloped["apiVersion"] = json!("2024-02-01");
    for (what, version, body) in [
        ("wrong case of a type", "2020-02-14", &wrong_type),
        ("wrong case of a type", "2024-02-01", &wrong_type),
        ("unknown field", "2024-02-01", &unknown),
        ("apiVersion in the body", "2024-02-01", &enveloped),
    ] {
        let seen = server.put(&format!("B/imageTemplates/t?api-version={version}"), body).await;
        let _ = writeln!(shown, "{what} {version}\n{}", server.show(&seen));
    }
    let long = format!("B/imageTemplates/{}?{V}", "x".repeat(65));
    for target in [&long, "B/imageTemplates/a%20b?api-version=2020-02-14"] {
        let _ = writeln!(shown, "{target}\n{}", server.show(&server.put(target, &template()).await));
    }
    let nogroup = format!(
        "/subscriptions/S/resourceGroups/nogroup/providers/Microsoft.VirtualMachineImages/imageTemplates/t?{V}"
    );
    let _ = writeln!(shown, "no group\n{}", server.show(&server.put(&nogroup, &template()).await));
    let uploads = format!("B/imageTemplates/t?{V}&kilnUploads=abc");
    let _ = writeln!(shown, "kilnUploads\n{}", server.show(&server.put(&uploads, &template()).await));
    expect![[r#"
        wrong case of a type 2020-02-14
        400 Bad Request
        {
          "code": "ValidationFailed",
          "message": "Validation failed: 'ImageTemplate.properties': Field 'distribute[0].type' has a bad value: ''. Please review  http://aka.ms/azvmimagebuildertmplref  for details on fields requirements in the Image Builder Template.",
          "target": "/properties/distribute/0/type",
          "details": [
            {
              "code": "UnknownType",
              "message": "line 1, column 276: Validation failed: 'ImageTemplate.properties.distribute[0]': Field 'type' has a bad value: 'vhd'; did you mean 'VHD'? The case of types counts",
              "target": "/properties/distribute/0/type"
            }
          ]
        }

        wrong case of a type 2024-02-01
        400 Bad Request
        {
          "error": {
            "code": "ValidationFailed",
            "message": "Validation failed: 'ImageTemplate.properties': Field 'distribute[0].type' has a bad value: ''. Please review  http://aka.ms/azvmimagebuildertmplref  for details on fields requirements in the Image Builder Template.",
            "target": "/properties/distribute/0/type",
            "details": [
              {
                "code": "UnknownType",
                "message": "line 1, column 276: Validation failed: 'ImageTemplate.properties.distribute[0]': Field 'type' has a bad value: 'vhd'; did you mean 'VHD'? The case of types counts",
                "target": "/properties/distribute/0/type"
              }
            ]
          }
        }

        unknown field 2024-02-01
        400 Bad Request
        {
          "error": {
            "code": "ValidationFailed",
            "message": "Unmarshalling entity encountered error: unmarshalling type *v2024_02_01.ImageTemplate: struct field Properties: unknown field \"vmboot\". There is an issue with the syntax with the JSON template you are submitting. Please review http://aka.ms/azvmimagebuildertmplref for details.",
            "target": "/properties/vmboot",
            "details": [
              {
                "code": "UnknownField",
                "message": "line 1, column 371: Unmarshalling entity encountered error: unmarshalling type *v2024_02_01.ImageTemplate: struct field Properties: unknown field \"vmboot\"",
                "target": "/properties/vmboot"
              }
            ]
          }
        }

        apiVersion in the body 2024-02-01
        400 Bad Request
        {
          "error": {
            "code": "ValidationFailed",
            "message": "Unmarshalling entity encountered error: unmarshalling type *v2024_02_01.ImageTemplate: unknown field \"apiVersion\". There is an issue with the syntax with the JSON template you are submitting. Please review http://aka.ms/azvmimagebuildertmplref for details.",
            "target": "/apiVersion",
            "details": [
              {
                "code": "UnknownField",
                "message": "line 1, column 372: Unmarshalling entity encountered error: unmarshalling type *v2024_02_01.ImageTemplate: unknown field \"apiVersion\"",
                "target": "/apiVersion"
              }
            ]
          }
        }

        B/imageTemplates/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx?api-version=2024-02-01
        400 Bad Request
        {
          "error": {
            "code": "ValidationFailed",
            "message": "Validation failed: 'ImageTemplate': Field 'name' has a bad value: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'. Please review  http://aka.ms/azvmimagebuildertmplref  for details on fields requirements in the Image Builder Template.",
            "details": [
              {
                "code": "BadName",
                "message": "Validation failed: 'ImageTemplate': Field 'name' has a bad value: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'; 1 to 64 letters, digits, '-', '_' and '.'"
              }
            ]
          }
        }

        B/imageTemplates/a%20b?api-version=2020-02-14
        400 Bad Request
        {
          "code": "ValidationFailed",
          "message": "Validation failed: 'ImageTemplate': Field 'name' has a bad value: 'a b'. Please review  http://aka.ms/azvmimagebuildertmplref  for details on fields requirements in the Image Builder Template.",
          "details": [
            {
              "code": "BadName",
              "message": "Validation failed: 'ImageTemplate': Field 'name' has a bad value: 'a b'; 1 to 64 letters, digits, '-', '_' and '.'"
            }
          ]
        }

        no group
        404 Not Found
        {
          "error": {
            "code": "ResourceGroupNotFound",
            "message": "Resource group 'nogroup' could not be found. Make it first: az group create --name nogroup --location local"
          }
        }

        kilnUploads
        400 Bad Request
        {
          "error": {
            "code": "InvalidParameter",
            "message": "kilnUploads: not a SHA-256 digest (64 hex digits expected, got 3 characters).",
            "target": "kilnUploads"
          }
        }

    "#]].assert_eq(&shown);
}

#[tokio::test]
async fn who_is_it() {
    let server = Server::open().await;
    let target = server.target(&format!("B/imageTemplates?{V}"));
    let mut shown = String::new();
    for (what, headers) in [
        ("no token", &[][..]),
        ("basic", &[("authorization", "Basic YTpi")]),
        ("no scheme", &[("authorization", "abc")]),
        ("two", &[("authorization", "Bearer a"), ("authorization", "Bearer b")]),
        ("garbage", &[("authorization", "Bearer a.b.c")]),
        ("unsigned", &[("authorization", "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.")]),
        ("another host's name", &[("host", "evil.example"), ("x-forwarded-host", "worse.example")]),
    ] {
        let mut request = Request::builder().uri(&target).extension(from_afar());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let seen = server.send(request.body(Body::empty()).unwrap()).await;
        let _ = writeln!(shown, "{what}\n{}", server.show(&seen));
    }
    expect![[r#"
        no token
        401 Unauthorized
        www-authenticate: Bearer authorization_uri="https://localhost:8441/TENANT", error="invalid_token", error_description="Authentication failed. The 'Authorization' header is missing."
        {
          "error": {
            "code": "AuthenticationFailed",
            "message": "Authentication failed. The 'Authorization' header is missing."
          }
        }

        basic
        401 Unauthorized
        www-authenticate: Bearer authorization_uri="https://localhost:8441/TENANT", error="invalid_token", error_description="Authentication failed. The 'Authorization' header is provided in an invalid format."
        {
          "error": {
            "code": "AuthenticationFailedInvalidHeader",
            "message": "Authentication failed. The 'Authorization' header is provided in an invalid format."
          }
        }

        no scheme
        401 Unauthorized
        www-authenticate: Bearer authorization_uri="https://localhost:8441/TENANT", error="invalid_token", error_description="Authentication failed. The 'Authorization' header is provided in an invalid format."
        {
          "error": {
            "code": "AuthenticationFailedInvalidHeader",
            "message": "Authentication failed. The 'Authorization' header is provided in an invalid format."
          }
        }

        two
        401 Unauthorized
        www-authenticate: Bearer authorization_uri="https://localhost:8441/TENANT", error="invalid_token", error_description="Authentication failed. The 'Authorization' header is provided in an invalid format."
        {
          "error": {
            "code": "AuthenticationFailedInvalidHeader",
            "message": "Authentication failed. The 'Authorization' header is provided in an invalid format."
          }
        }

        garbage
        401 Unauthorized
        www-authenticate: Bearer authorization_uri="https://localhost:8441/TENANT", error="invalid_token", error_description="The access token is invalid."
        {
          "error": {
            "code": "InvalidAuthenticationToken",
            "message": "The access token is invalid."
          }
        }

        unsigned
        401 Unauthorized
        www-authenticate: Bearer authorization_uri="https://localhost:8441/TENANT", error="invalid_token", error_description="The access token is invalid."
        {
          "error": {
            "code": "InvalidAuthenticationToken",
            "message": "The access token is invalid."
          }
        }

        another host's name
        401 Unauthorized
        www-authenticate: Bearer authorization_uri="https://localhost:8441/TENANT", error="invalid_token", error_description="Authentication failed. The 'Authorization' header is missing."
        {
          "error": {
            "code": "AuthenticationFailed",
            "message": "Authentication failed. The 'Authorization' header is missing."
          }
        }

    "#]].assert_eq(&shown);
}
