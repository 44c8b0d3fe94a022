//! Signing in, and what clients need around the contract.

use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use expect_test::expect;
use serde_json::{Value, json};

use super::{Seen, Server, from_afar, template};
use crate::access::{self, IDENTITY_SECRET, OPERATOR_SECRET, Role};
use crate::config::{Config, PrincipalConfig, SecretHash};
use crate::serve::IdentityOnly;

const SCOPE: &str = "scope=https%3A%2F%2Flocalhost%3A8441%2F%2F.default";

/// A form of a service principal, as MSAL sends it.
fn form(client: &str, secret: &str) -> String {
    format!(
        "client_id={client}&grant_type=client_credentials&client_info=1&client_secret={secret}&claims=%7B%7D&{SCOPE}"
    )
}

fn with_principal(id: &str, role: Role, secret: &str) -> Config {
    let secret_hash = SecretHash::try_from(access::hash_secret(secret).unwrap()).unwrap();
    let mut config = Config::default();
    config.access.principals = vec![PrincipalConfig { id: id.to_owned(), name: None, role, secret_hash }];
    config
}

impl Server {
    fn secret(&self, name: &str) -> String {
        std::fs::read_to_string(self.daemon.paths.server().join(name)).unwrap()
    }

    fn afar(&self, method: Method, path: &str) -> axum::http::request::Builder {
        let path = path.replace("TENANT", &self.daemon.environment.tenant);
        Request::builder().method(method).uri(path).header("host", "localhost:8441").extension(from_afar())
    }

    async fn sign_in(&self, path: &str, form: &str) -> Seen {
        let request =
            self.afar(Method::POST, path).header("content-type", "application/x-www-form-urlencoded");
        self.send(request.body(Body::from(form.to_owned())).unwrap()).await
    }

    async fn identity(&self, query: &str, header: Option<&str>) -> Seen {
        let mut request = self.afar(Method::GET, &format!("/msi/token?{query}"));
        if let Some(header) = header {
            request = request.header("X-IDENTITY-HEADER", header);
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }

    async fn with_token(&self, method: Method, path: &str, token: &str) -> Seen {
        let path = path.replace("/S/", &format!("/{}/", self.subscription()));
        let request = self.afar(method, &path).header("authorization", format!("Bearer {token}"));
        self.send(request.body(Body::empty()).unwrap()).await
    }
}

const V2: &str = "/TENANT/oauth2/v2.0/token";
const V1: &str = "/TENANT/oauth2/token";

#[tokio::test]
async fn a_service_principal_signs_in_at_both_endpoints() {
    let server = Server::with(with_principal("eye", Role::Reader, "se cret+&=%")).await;
    let secret = "se+cret%2B%26%3D%25";
    let v2 = server.sign_in(V2, &form("eye", secret)).await;
    assert_eq!(v2.status, StatusCode::OK, "{v2:?}");
    assert_eq!(v2.header("cache-control"), "no-store");
    let body = v2.json();
    assert_eq!((&body["token_type"], &body["expires_in"]), (&json!("Bearer"), &json!(3600)));
    let token = body["access_token"].as_str().unwrap();

    let groups = "/subscriptions/S/resourcegroups?api-version=2024-11-01";
    assert_eq!(server.with_token(Method::GET, groups, token).await.status, StatusCode::OK);
    let group = "/subscriptions/S/resourcegroups/x?api-version=2024-11-01";
    assert_eq!(server.with_token(Method::DELETE, group, token).await.code(), "AuthorizationFailed");

    let v1 = format!(
        "grant_type=client_credentials&client_id=eye&client_secret={secret}&resource=https://localhost:8441/"
    );
    let v1 = server.sign_in(V1, &v1).await.json();
    assert_eq!((&v1["resource"], &v1["expires_in"]), (&json!("https://localhost:8441/"), &json!("3600")));
    assert!(v1["expires_on"].as_str().unwrap().parse::<u64>().unwrap() > 0);

    let basic = STANDARD.encode(format!("eye:{secret}"));
    let request = server.afar(Method::POST, V2).header("authorization", format!("Basic {basic}"));
    let body = format!("grant_type=client_credentials&{SCOPE}");
    let answer = server.send(request.body(Body::from(body)).unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

#[tokio::test]
async fn refusals_have_entras_codes() {
    let server = Server::open().await;
    let good = form("x", "y");
    let mut shown = String::new();
    for (path, form) in [
        (V2, good.clone()),
        ("/other/oauth2/v2.0/token", good.clone()),
        ("/common/oauth2/v2.0/token", good.replace("client_credentials", "password")),
        (V2, good.replace("grant_type", "grant")),
        (V2, good.replace("client_id", "id")),
        (V2, good.replace("client_secret", "client_assertion")),
        (V2, good.replace("scope", "skope")),
        (V2, good.replace("%2F.default", "")),
        (V2, good.replace("localhost", "evil.example")),
        (V1, good.clone()),
        (V2, format!("{good}&client_id=another")),
        (V2, "{\"grant_type\": \"client_credentials\"}".to_owned()),
        (V2, "%zz".to_owned()),
        (V2, "x".repeat(70_000)),
    ] {
        let seen = server.sign_in(path, &form).await;
        let body = seen.json();
        let text = body["error_description"].as_str().unwrap();
        let text = text.split(" Trace ID").next().unwrap();
        shown.push_str(&format!("{} {} {text}\n", seen.status.as_u16(), body["error"].as_str().unwrap()));
        assert_eq!(body["error_codes"].as_array().unwrap().len(), 1);
    }
    expect![[r#"
        401 invalid_client AADSTS7000215: Invalid client secret provided, or no such client. The secret itself is needed, not its hash or its id.
        400 invalid_request AADSTS90002: Tenant 'other' not found. Check that it is the tenant id of this server.
        400 unsupported_grant_type AADSTS70003: The grant type 'password' is not supported: service principals sign in here.
        400 invalid_request AADSTS900144: The request body must contain the following parameter: 'grant_type'.
        400 invalid_request AADSTS900144: The request body must contain the following parameter: 'client_id'.
        401 invalid_client AADSTS7000218: The request body must contain the following parameter: 'client_secret'. Certificates are not supported.
        400 invalid_request AADSTS900144: The request body must contain the following parameter: 'scope'.
        400 invalid_scope AADSTS1002012: The scope must be the resource's address with '/.default' behind it.
        400 invalid_resource AADSTS500011: The resource principal named https://evil.example:8441/ was not found. Tokens are given for this server's own addresses (tls.names and publicUrl add to them) and for https://management.azure.com.
        400 invalid_request AADSTS900144: The request body must contain the following parameter: 'resource'.
        400 invalid_request AADSTS90014: 'client_id' is given twice.
        400 invalid_request AADSTS900144: The request body must contain the following parameter: 'grant_type'.
        400 invalid_request AADSTS90014: The request's body is no form (application/x-www-form-urlencoded).
        400 invalid_request AADSTS90014: The request's body is over 64 KiB, or cut off.
    "#]].assert_eq(&shown);
    let operator = server.sign_in(V2, &form("x", "y")).await;
    let known = crate::access::read_operator(&server.daemon.paths.server()).unwrap().unwrap().client_id;
    let wrong = server.sign_in(V2, &form(&known, "y")).await;
    let said = |seen: &Seen| (seen.status, seen.json()["error_codes"].clone(), seen.json()["error"].clone());
    assert_eq!(said(&operator), said(&wrong), "nobody learns which ids there are");
}

#[tokio::test]
async fn guessing_is_answered_with_a_time_to_wait() {
    let server = Server::open().await;
    let mut last = server.sign_in(V2, &form("x", "y")).await;
    for _ in 0..25 {
        last = server.sign_in(V2, &form("x", "y")).await;
    }
    assert_eq!(last.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(last.header("retry-after").parse::<u64>().unwrap() > 0);
    let identity = server.identity("api-version=2019-08-01&resource=https://localhost/", Some("wrong")).await;
    assert_eq!(identity.status, StatusCode::TOO_MANY_REQUESTS, "by the same address");
}

#[tokio::test]
async fn discovery_names_our_own_addresses() {
    let server = Server::open().await;
    let ask = async |path: &str, host: &str| {
        let path = path.replace("TENANT", &server.daemon.environment.tenant);
        let request = Request::get(path).header("host", host).extension(from_afar());
        server.send(request.body(Body::empty()).unwrap()).await
    };
    let tenant = &server.daemon.environment.tenant;
    let seen = ask("/TENANT/v2.0/.well-known/openid-configuration", "127.0.0.1:9000").await.json();
    assert_eq!(seen["issuer"], format!("https://127.0.0.1:9000/{tenant}/v2.0"));
    assert_eq!(seen["token_endpoint"], format!("https://127.0.0.1:9000/{tenant}/oauth2/v2.0/token"));
    assert!(seen["authorization_endpoint"].is_string());
    let seen = ask("/common/.well-known/openid-configuration", "evil.example").await.json();
    assert_eq!(seen["token_endpoint"], format!("https://localhost:8441/{tenant}/oauth2/token"));
    let seen = ask("/other/v2.0/.well-known/openid-configuration", "localhost").await;
    assert_eq!((seen.status, &seen.json()["error_codes"]), (StatusCode::BAD_REQUEST, &json!([90002])));
    assert_eq!(ask("/TENANT/discovery/v2.0/keys", "localhost").await.json(), json!({"keys": []}));
}

#[tokio::test]
async fn managed_identity_wants_its_header() {
    let server = Server::open().await;
    let secret = server.secret(IDENTITY_SECRET);
    let query = "resource=https%3A%2F%2Flocalhost%3A8441%2F&api-version=2019-08-01";
    let given = server.identity(query, Some(&secret)).await;
    assert_eq!((given.status, given.header("cache-control")), (StatusCode::OK, "no-store"));
    let body = given.json();
    assert_eq!(body["resource"], "https://localhost:8441/");
    let token = body["access_token"].as_str().unwrap();
    let seen = server.with_token(Method::GET, "/subscriptions?api-version=2022-12-01", token).await;
    assert_eq!(seen.status, StatusCode::OK);

    for (query, header, status) in [
        (query, None, 401),
        (query, Some("wrong"), 401),
        ("resource=https://localhost/", Some(secret.as_str()), 400),
        ("api-version=2019-08-01", Some(&secret), 400),
        ("api-version=2019-08-01&resource=https://vault.azure.net", Some(&secret), 400),
        ("api-version=2019-08-01&resource=https://localhost/&client_id=x", Some(&secret), 400),
    ] {
        let seen = server.identity(query, header).await;
        assert_eq!((seen.status.as_u16(), &seen.json()["statusCode"]), (status, &json!(status)), "{query}");
    }
    // The plain port answers this and nothing else.
    let plain = |path: &str| {
        let request = server.afar(Method::GET, path).header("X-IDENTITY-HEADER", secret.as_str());
        server.send(request.extension(IdentityOnly).body(Body::empty()).unwrap())
    };
    assert_eq!(plain(&format!("/msi/token?{query}")).await.status, StatusCode::OK);
    for path in ["/metadata/endpoints?api-version=2022-09-01", "/subscriptions?api-version=2022-12-01"] {
        assert_eq!(plain(path).await.status, StatusCode::NOT_FOUND);
    }
    let mut off = Config::default();
    off.access.managed_identity.enabled = false;
    assert_eq!(Server::with(off).await.identity(query, Some(&secret)).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn endpoints_have_the_shape_of_their_time() {
    let server = Server::open().await;
    let ask = async |version: &str| {
        let path = format!("/metadata/endpoints?api-version={version}");
        server.send(server.afar(Method::GET, &path).body(Body::empty()).unwrap()).await.json()
    };
    let newest = ask("2022-09-01").await;
    assert_eq!(newest["resourceManager"], "https://localhost:8441");
    assert_eq!(newest["authentication"]["audiences"], json!(["https://localhost:8441/"]));
    assert_eq!(ask("2019-05-01").await, json!([newest]));
    assert_eq!(ask("2015-01-01").await["authentication"]["loginEndpoint"], "https://localhost:8441");
    let missing = server.get("/metadata/endpoints").await;
    assert_eq!(missing.code(), "MissingApiVersionParameter");
    assert_eq!(server.get("/aliases.json").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_surroundings_as_clients_see_them() {
    let server = Server::open().await;
    let mut shown = String::new();
    for path in [
        "/subscriptions?api-version=2022-12-01",
        "/tenants?api-version=2022-12-01",
        "/subscriptions/S/locations?api-version=2022-12-01",
        "/subscriptions/S/resourcegroups?api-version=2024-11-01",
        "/subscriptions/S/providers/microsoft.virtualmachineimages?api-version=2024-11-01",
    ] {
        let body = server.get(path).await.text;
        let body = body.replace(server.subscription(), "S").replace(&server.daemon.environment.tenant, "T");
        shown.push_str(&format!("{body}\n"));
    }
    expect![[r#"
        {"value":[{"id":"/subscriptions/S","subscriptionId":"S","tenantId":"T","displayName":"Kiln","state":"Enabled","authorizationSource":"RoleBased","managedByTenants":[],"subscriptionPolicies":{"locationPlacementId":"Public_2014-09-01","quotaId":"PayAsYouGo_2014-09-01","spendingLimit":"Off"}}],"count":{"type":"Total","value":1}}
        {"value":[{"id":"/tenants/T","tenantId":"T","displayName":"Kiln","tenantCategory":"Home","domains":[]}]}
        {"value":[{"id":"/subscriptions/S/locations/local","name":"local","type":"Region","displayName":"Local","regionalDisplayName":"Local","metadata":{"regionType":"Physical","regionCategory":"Recommended","pairedRegion":[]}}]}
        {"value":[{"id":"/subscriptions/S/resourceGroups/kiln","name":"kiln","type":"Microsoft.Resources/resourceGroups","location":"local","properties":{"provisioningState":"Succeeded"}}]}
        {"id":"/subscriptions/S/providers/Microsoft.VirtualMachineImages","namespace":"Microsoft.VirtualMachineImages","resourceTypes":[{"resourceType":"imageTemplates","locations":["Local"],"apiVersions":["2025-10-01","2024-02-01","2023-07-01","2022-07-01","2022-02-14","2021-10-01","2020-02-14","2019-05-01-preview","2019-02-01-preview","2018-02-01-preview"],"defaultApiVersion":"2025-10-01","capabilities":"SupportsTags, SupportsLocation"},{"resourceType":"imageTemplates/runOutputs","locations":["Local"],"apiVersions":["2025-10-01","2024-02-01","2023-07-01","2022-07-01","2022-02-14","2021-10-01","2020-02-14","2019-05-01-preview","2019-02-01-preview","2018-02-01-preview"],"defaultApiVersion":"2025-10-01","capabilities":"None"},{"resourceType":"imageTemplates/triggers","locations":["Local"],"apiVersions":["2025-10-01","2024-02-01","2023-07-01","2022-07-01"],"defaultApiVersion":"2025-10-01","capabilities":"None"},{"resourceType":"locations","locations":[],"apiVersions":["2025-10-01","2024-02-01","2023-07-01","2022-07-01","2022-02-14","2021-10-01","2020-02-14","2019-05-01-preview","2019-02-01-preview","2018-02-01-preview"],"defaultApiVersion":"2025-10-01","capabilities":"None"},{"resourceType":"locations/operations","locations":["Local"],"apiVersions":["2025-10-01","2024-02-01","2023-07-01","2022-07-01","2022-02-14","2021-10-01","2020-02-14","2019-05-01-preview","2019-02-01-preview","2018-02-01-preview"],"defaultApiVersion":"2025-10-01","capabilities":"None"},{"resourceType":"operations","locations":[],"apiVersions":["2025-10-01","2024-02-01","2023-07-01","2022-07-01","2022-02-14","2021-10-01","2020-02-14","2019-05-01-preview","2019-02-01-preview","2018-02-01-preview"],"defaultApiVersion":"2025-10-01","capabilities":"None"}],"registrationState":"Registered","registrationPolicy":"RegistrationFree"}
    "#]].assert_eq(&shown);
    for (path, status, code) in [
        ("/subscriptions/me/locations?api-version=1", 400, "InvalidSubscriptionId"),
        ("/subscriptions/3f2504e0-4f89-41d3-9a0c-0305e82c3301?api-version=1", 404, "SubscriptionNotFound"),
        ("/subscriptions/S/providers/Microsoft.Compute?api-version=1", 404, "InvalidResourceNamespace"),
        ("/subscriptions/S/resourcegroups/none?api-version=1", 404, "ResourceGroupNotFound"),
        ("/subscriptions/S/resourcegroups?$filter=x&api-version=1", 400, "InvalidFilterInQueryString"),
    ] {
        let seen = server.get(path).await;
        assert_eq!((seen.status.as_u16(), seen.code().as_str()), (status, code), "{path}");
    }
    let register =
        "/subscriptions/S/providers/Microsoft.VirtualMachineImages/register?api-version=2024-11-01";
    assert_eq!(server.ask(Method::POST, register).await.json()["registrationState"], "Registered");
    let unregister = register.replace("/register", "/unregister");
    assert_eq!(server.ask(Method::POST, &unregister).await.status, StatusCode::CONFLICT);
    let upper = server.subscription().to_uppercase();
    assert_eq!(server.get(&format!("/SUBSCRIPTIONS/{upper}?api-version=1")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn resource_groups_come_and_go() {
    let server = Server::open().await;
    let path = "/subscriptions/S/resourcegroups/Team-1?api-version=2024-11-01";
    assert_eq!(server.ask(Method::HEAD, path).await.status, StatusCode::NOT_FOUND);
    let created = server.put(path, &json!({"location": "West US 2", "tags": {"a": "b"}})).await;
    assert_eq!(created.status, StatusCode::CREATED, "{created:?}");
    assert_eq!(created.json()["location"], "westus2");
    assert_eq!(server.ask(Method::HEAD, path).await.status, StatusCode::NO_CONTENT);
    let again = path.replace("Team-1", "TEAM-1");
    let updated = server.put(&again, &json!({"location": "westus2"})).await;
    assert_eq!((updated.status, &updated.json()["name"]), (StatusCode::OK, &json!("Team-1")));
    assert_eq!(updated.json().get("tags"), None);

    for (path, body, code) in [
        (path, json!({"location": "eastus"}), "InvalidResourceGroupLocation"),
        (path, json!({}), "LocationRequired"),
        (path, json!([]), "LocationRequired"),
        (path, json!({"location": "a/b"}), "LocationNotAvailableForResourceGroup"),
        (path, json!({"location": "westus2", "tags": {"a": 1}}), "InvalidTags"),
        (path, json!({"location": "westus2", "tags": []}), "InvalidTags"),
        (
            "/subscriptions/S/resourcegroups/dot.?api-version=1",
            json!({"location": "l"}),
            "InvalidResourceGroupName",
        ),
    ] {
        assert_eq!(server.put(path, &body).await.code(), code, "{body}");
    }

    let inside = "/subscriptions/S/resourceGroups/team-1/providers/Microsoft.VirtualMachineImages/imageTemplates/t?api-version=2024-02-01";
    assert_eq!(server.put(inside, &template()).await.status, StatusCode::CREATED);
    let refused = server.ask(Method::DELETE, path).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::CONFLICT, "ResourceGroupNotEmpty"));
    let gone = async || {
        for _ in 0..100 {
            if server.get(inside).await.status == StatusCode::NOT_FOUND {
                return;
            }
            server.ask(Method::DELETE, inside).await;
            // A template that is still being made refuses to go, and says when by nothing but its state.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("the template stays");
    };
    gone().await;
    assert_eq!(server.ask(Method::DELETE, path).await.status, StatusCode::OK);
    assert_eq!(server.ask(Method::DELETE, path).await.code(), "ResourceGroupNotFound");
}

#[tokio::test]
async fn resources_are_filtered_and_paged() {
    let server = Server::open().await;
    for n in 0..7 {
        let mut body = template();
        body["tags"] = json!({"even": (n % 2 == 0).to_string()});
        let seen = server.put(&format!("B/imageTemplates/t{n}?api-version=2024-02-01"), &body).await;
        assert_eq!(seen.status, StatusCode::CREATED, "{seen:?}");
    }
    let names = |body: &Value| -> Vec<String> {
        let items = body["value"].as_array().unwrap();
        items.iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    let list = "/subscriptions/S/resources?api-version=2024-11-01";
    let all = server.get(list).await.json();
    assert_eq!(names(&all).len(), 7);
    assert_eq!(all["value"][0]["type"], "Microsoft.VirtualMachineImages/imageTemplates");
    let filter = "$filter=tagName%20eq%20'even'%20and%20tagValue%20eq%20'true'";
    let mut page = server.get(&format!("{list}&{filter}&$top=3")).await.json();
    let mut found = names(&page);
    while let Some(next) = page["nextLink"].as_str() {
        let next = next.strip_prefix(&server.daemon.environment.names.url()).unwrap().to_owned();
        page = server.get(&next).await.json();
        found.extend(names(&page));
    }
    assert_eq!(found, ["t0", "t2", "t4", "t6"]);
    for (query, count) in [
        ("$filter=resourceGroup%20eq%20'other'", 0),
        ("$filter=resourceGroup%20eq%20'KILN'%20and%20name%20eq%20'T3'", 1),
        ("$filter=resourceType%20eq%20'Microsoft.Compute/images'", 0),
    ] {
        assert_eq!(names(&server.get(&format!("{list}&{query}")).await.json()).len(), count, "{query}");
    }
    let group = "/subscriptions/S/resourcegroups/kiln/resources?api-version=2024-11-01";
    assert_eq!(names(&server.get(group).await.json()).len(), 7);
    assert_eq!(server.get(&format!("{list}&$top=x")).await.code(), "InvalidTopInQueryString");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Everything that signs somebody in is used, rightly and wrongly, with all logs on; then it is searched for.
#[tokio::test]
async fn secrets_are_in_no_log_and_no_answer() {
    const CONFIGURED: &str = "canary-configured-0d1f";
    const GUESSED: &str = "canary-guessed-7a33";
    let config = with_principal("ci", Role::Operator, CONFIGURED);
    let hash = serde_json::to_string(&format!("{:?}", config.access.principals[0])).unwrap();
    assert!(!hash.contains("argon2id"), "{hash}");
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // Of this thread, on which all tasks of the test run.
    let caught = tracing::subscriber::set_default(subscriber);
    let (server, answers, tokens) = async {
        let server = Server::with(config).await;
        let (operator, identity) = (server.secret(OPERATOR_SECRET), server.secret(IDENTITY_SECRET));
        let mut answers = String::new();
        let mut tokens = Vec::new();
        let query = "api-version=2019-08-01&resource=https://localhost/";
        for seen in
            [server.sign_in(V2, &form("ci", CONFIGURED)).await, server.identity(query, Some(&identity)).await]
        {
            tokens.push(seen.json()["access_token"].as_str().unwrap().to_owned());
        }
        for (client, secret) in
            [("ci", GUESSED), ("nobody", &operator), (&operator, &operator), ("ci", &identity)]
        {
            answers.push_str(&server.sign_in(V2, &form(client, secret)).await.text);
            answers.push_str(&server.sign_in(V1, &form(client, secret)).await.text);
        }
        answers.push_str(&server.identity(query, Some(GUESSED)).await.text);
        answers.push_str(&server.identity(&format!("{query}&x={GUESSED}"), Some(&operator)).await.text);
        let basic = STANDARD.encode(format!("ci:{GUESSED}"));
        for header in
            [format!("Basic {basic}"), format!("Bearer {GUESSED}"), format!("Bearer {}x", tokens[0])]
        {
            let request = server.afar(Method::GET, "/subscriptions?api-version=2022-12-01");
            let request = request.header("authorization", &header);
            answers.push_str(&format!("{:?}", server.send(request.body(Body::empty()).unwrap()).await));
        }
        for path in ["/kiln/activity", "/kiln/status", "/subscriptions?api-version=2022-12-01"] {
            answers.push_str(&server.with_token(Method::GET, path, &tokens[0]).await.text);
        }
        (server, answers, tokens)
    }
    .await;
    drop(caught);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("unknown client id or wrong secret"), "the log was caught: {log}");
    let mut secrets =
        vec![server.secret(OPERATOR_SECRET), server.secret(IDENTITY_SECRET), "$argon2id$".to_owned()];
    secrets.extend([CONFIGURED.to_owned(), GUESSED.to_owned()]);
    secrets.extend(tokens.iter().map(|token| token.rsplit('.').next().unwrap().to_owned()));
    for secret in secrets {
        assert!(!log.contains(&secret), "{secret} is in the log");
        assert!(!answers.contains(&secret), "{secret} is in an answer");
    }
    // On the disk they are where they belong, and nowhere else.
    let token_key = std::fs::read(server.daemon.paths.server().join("token.key")).unwrap();
    let mut found = Vec::new();
    let mut folders = vec![server.folder.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let has = |secret: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
            let held = [
                server.secret(OPERATOR_SECRET),
                server.secret(IDENTITY_SECRET),
                CONFIGURED.to_owned(),
                GUESSED.to_owned(),
            ];
            if has(&token_key)
                || held.iter().any(|secret| has(secret.as_bytes()))
                || tokens.iter().any(|token| has(token.as_bytes()))
            {
                found.push(path.file_name().unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    assert_eq!(found, [IDENTITY_SECRET, OPERATOR_SECRET, "token.key"]);
}
