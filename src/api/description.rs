//! `/openapi.json` and `/docs`: what the API is, for programs and for people. Each handler carries its own
//! part of the description, and is routed by it; here is what holds for all of them.

use std::sync::Arc;

use anyhow::Context as _;
use axum::Extension;
use axum::http::HeaderName;
use axum::http::header;
use axum::response::Html;
use axum::response::IntoResponse;
use axum::response::Response;
use bytes::Bytes;
use utoipa::ToResponse as _;
use utoipa::openapi::ComponentsBuilder;
use utoipa::openapi::InfoBuilder;
use utoipa::openapi::LicenseBuilder;
use utoipa::openapi::Object;
use utoipa::openapi::ObjectBuilder;
use utoipa::openapi::OpenApi;
use utoipa::openapi::PathItem;
use utoipa::openapi::Ref;
use utoipa::openapi::RefOr;
use utoipa::openapi::Schema;
use utoipa::openapi::path::Operation;
use utoipa::openapi::path::Parameter;
use utoipa::openapi::schema::SchemaType;
use utoipa::openapi::schema::Type;
use utoipa::openapi::tag::Tag;
use utoipa::openapi::tag::TagBuilder;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::Config;

use super::Api;
use super::auth;
use super::error;
use super::error::InternalError;
use super::error::NotFound;
use super::parameters::Path;
use super::quota;
use super::request;
use crate::error::Error;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(openapi))
        .routes(routes!(docs))
        .routes(routes!(docs_file))
}

const OVERVIEW: &str = "\
One OpenAI-compatible API in front of the files of many providers. A file is uploaded once, has one id within \
milliseconds, and is carried to every model it names. The official OpenAI SDKs work with it unmodified; what is added \
to OpenAI's API are extra fields, extra parameters and extra paths.

- Times are Unix seconds.
- Every refusal and failure has the body of the schema `Error`: also a path that does not exist (404) and a method \
that a path does not have (405).
- Every `GET` answers `HEAD` too, without the body.
- Unknown query parameters and JSON fields are ignored, as OpenAI does.
- Every answer has an `x-request-id`; where the key has a limit of requests, also OpenAI's `x-ratelimit-limit-requests`, \
`x-ratelimit-remaining-requests` and `x-ratelimit-reset-requests`.
- An owner sees and touches only what it made; an admin key sees all.";

/// What the paths are grouped by, in this order.
const TAGS: [(&str, &str); 6] = [
    ("Files", "Files, and their copies at the models they were sent to."),
    ("Jobs", "The durable jobs that carry files: each copy has one."),
    ("Webhooks", "Who is told of an owner's events, and what. Deliveries are Standard Webhooks."),
    ("Models", "The models that files can be sent to."),
    ("Admin", "Keys and providers. These need an admin key, and no `X-Longshore-Owner`."),
    ("Operation", "Whether it runs, how it runs, and this description."),
];

/// The text of `/openapi.json`.
#[derive(Clone, Debug)]
pub struct Description(Bytes);

/// Adds to what the handlers say of themselves what holds for all of them.
///
/// # Errors
///
/// When it cannot be written as JSON.
pub fn write(handlers: OpenApi) -> anyhow::Result<Description> {
    let text = serde_json::to_vec(&complete(handlers));
    Ok(Description(text.context("cannot write the description of the API")?.into()))
}

fn complete(mut api: OpenApi) -> OpenApi {
    api.info = InfoBuilder::new()
        .title("Longshore")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(OVERVIEW))
        .license(Some(
            LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build(),
        ))
        .build();
    api.tags = Some(TAGS.into_iter().map(|(name, text)| tag(name, text)).collect());
    let (owner, id) = (auth::owner_parameter(), request::parameter());
    let shared = ComponentsBuilder::new()
        .security_scheme(auth::SCHEME, auth::scheme())
        .responses_from_iter(error::descriptions());
    let mut components = shared.build();
    components.parameters.insert(owner.name.clone(), RefOr::T(owner));
    components.parameters.insert(id.name.clone(), RefOr::T(id));
    components.headers.insert(request::HEADER.to_string(), RefOr::T(request::header()));
    for (name, header) in quota::headers() {
        components.headers.insert(name.to_string(), RefOr::T(header));
    }
    components.schemas.extend(error::schemas());
    if let Some(own) = api.components.take() {
        components.schemas.extend(own.schemas);
    }
    for response in components.responses.values_mut() {
        add_request_id(response);
    }
    api.components = Some(components);
    api.paths.paths = std::mem::take(&mut api.paths.paths)
        .into_iter()
        .map(|(path, mut item)| {
            for operation in operations(&mut item) {
                complete_operation(operation);
            }
            // The router's `{*name}`, which takes slashes too, is a plain `{name}` to OpenAPI.
            (path.replace("{*", "{"), item)
        })
        .collect();
    api
}

fn tag(name: &str, text: &str) -> Tag {
    TagBuilder::new().name(name).description(Some(text)).build()
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete]
        .into_iter()
        .flatten()
}

fn complete_operation(operation: &mut Operation) {
    auth::describe(operation);
    let parameters = operation.parameters.get_or_insert_default();
    for parameter in parameters.iter_mut() {
        if let RefOr::T(parameter) = parameter {
            mend(parameter);
        }
    }
    parameters.push(RefOr::Ref(Ref::new(format!("#/components/parameters/{}", request::HEADER))));
    let responses = &mut operation.responses.responses;
    let failed = Ref::from_response_name(InternalError::response().0);
    responses.entry("500".to_owned()).or_insert_with(|| failed.into());
    for response in responses.values_mut() {
        add_request_id(response);
    }
}

/// To utoipa an optional parameter is one that may be `null`, which none can be; and it takes no text for one
/// whose schema is made by a function, so that the schema brings it.
fn mend(parameter: &mut Parameter) {
    let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema else { return };
    if let SchemaType::Array(types) = &mut schema.schema_type {
        types.retain(|kind| *kind != Type::Null);
        if let [kind] = types.as_slice() {
            schema.schema_type = SchemaType::Type(kind.clone());
        }
    }
    if parameter.description.is_none() {
        parameter.description = schema.description.take();
    }
}

fn add_request_id(response: &mut RefOr<utoipa::openapi::Response>) {
    if let RefOr::T(response) = response {
        let header = Ref::new(format!("#/components/headers/{}", request::HEADER));
        response.headers.insert(request::HEADER.to_string(), RefOr::Ref(header));
    }
}

/// A text that is one of these.
pub fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).build()
}

/// A schema with its text, for a parameter whose schema is made by a function.
pub fn described(mut schema: Object, text: &str) -> Object {
    schema.description = Some(text.to_owned());
    schema
}

/// This description
///
/// In OpenAPI 3.1. It needs no key: it says what every installation of this version can do, and nothing of this one.
#[utoipa::path(get, path = "/openapi.json", operation_id = "openapi", tag = "Operation", responses(
    (status = 200, description = "The description.", body = Object, content_type = "application/json"),
))]
async fn openapi(Extension(Description(text)): Extension<Description>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// This description, as a page
///
/// It needs no key to be read, and nothing but this server: the page and all that it loads come from here. A key that
/// is entered there is sent with the requests that are tried out, and forgotten with the page.
#[utoipa::path(get, path = "/docs", operation_id = "docs", tag = "Operation", responses(
    (status = 200, description = "The page.", body = String, content_type = "text/html"),
))]
async fn docs() -> Response {
    let page = Html(include_str!("description/docs.html"));
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], PLAIN, page).into_response()
}

/// A file of the page
#[utoipa::path(get, path = "/docs/{file}", operation_id = "docs_file", tag = "Operation",
    params(("file" = String, Path, description = "A name that the page knows.", example = "swagger-ui.css")),
    responses(
        (status = 200, description = "The file.", content_type = "*/*"),
        (status = 404, response = NotFound),
    ),
)]
async fn docs_file(Path(name): Path) -> Result<Response, Error> {
    // The validator would be asked over the network; and a key must not outlive the page.
    let config = Config::from("openapi.json")
        .use_base_layout()
        .validator_url("none")
        .persist_authorization(false)
        .try_it_out_enabled(true)
        .default_models_expand_depth(0)
        .display_request_duration(true);
    let file = utoipa_swagger_ui::serve(&name, Arc::new(config))
        .map_err(|error| Error::Internal(anyhow::anyhow!("{error}")))?
        .ok_or_else(|| Error::no_such("file of the page", "file", &name))?;
    let cached = (header::CACHE_CONTROL, "max-age=3600");
    Ok(([(header::CONTENT_TYPE, file.content_type)], [cached], PLAIN, file.bytes.into_owned())
        .into_response())
}

/// The page loads from here and nowhere else, and nobody frames it: a key may be entered there.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
                      img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";
const PLAIN: [(HeaderName, &str); 1] = [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use axum::Router;

    use super::*;

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let (router, described) = crate::api::routes().split_for_parts();
        let described: BTreeSet<_> = described.paths.paths.into_keys().collect();
        assert!(described.len() > 15, "{described:?}");
        assert_eq!(paths(&router), described);
    }

    /// The paths of a router. Its text for debugging is the only list of them that axum gives.
    fn paths(router: &Router<Api>) -> BTreeSet<String> {
        let text = format!("{router:?}");
        let (text, _) = text.split_once("fallback_router").unwrap();
        let paths = text.split('"').skip(1).step_by(2);
        paths.filter(|path| path.starts_with('/')).map(str::to_owned).collect()
    }
}
