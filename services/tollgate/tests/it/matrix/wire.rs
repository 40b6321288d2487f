//! What the running system says it offers, and how any of it is called.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use prost::{
    Message,
    encoding::{self, WireType},
};
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use serde_json::Value;
use testkit::load::{Connection, Shot};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Channel, Endpoint},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

/// Open without a token, and none of ours.
const OPEN_PACKAGES: [&str; 2] = ["grpc.health.", "grpc.reflection."];
/// Used by our messages and defined elsewhere.
const FOREIGN_MESSAGES: [&str; 1] = ["google.protobuf.Timestamp"];

/// What the API's own document says of a route.
pub(super) struct Route {
    pub(super) has_body: bool,
    /// Ids that a request may have outside of its path: names of fields and of query parameters.
    pub(super) ids: BTreeSet<String>,
}

/// Every route, by `METHOD /path`.
pub(super) async fn routes(api: &str) -> BTreeMap<String, Route> {
    let shot = Shot::get("/openapi.json");
    let answer = Connection::to(api).call("", &shot).await;
    let document = answer.expect("an answer").json();
    let mut found = BTreeMap::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("an item") {
            let body = &operation["requestBody"];
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let mut ids: BTreeSet<String> = parameters.filter_map(id_of_query).collect();
            ids.extend(ids_of_body(&document, body));
            let has_body = !body.is_null();
            let name = format!("{} {path}", method.to_uppercase());
            found.insert(name, Route { has_body, ids });
        }
    }
    found
}

/// The name of a query parameter that is an id: its description shows one, such as `key_…`.
fn id_of_query(parameter: &Value) -> Option<String> {
    let description = parameter["description"].as_str().unwrap_or_default();
    let is_id = parameter["in"] == "query" && description.contains("_…`");
    let name = parameter["name"].as_str().filter(|_| is_id)?;
    Some(name.to_owned())
}

fn ids_of_body(document: &Value, body: &Value) -> Vec<String> {
    let schema = &body["content"]["application/json"]["schema"];
    let name = schema["$ref"]
        .as_str()
        .and_then(|name| name.split('/').next_back());
    let schema = name.map_or(schema, |name| &document["components"]["schemas"][name]);
    let fields = schema["properties"].as_object().into_iter().flatten();
    let names = fields.map(|(name, _)| name.to_owned());
    names.filter(|name| is_id(name)).collect()
}

fn is_id(field: &str) -> bool {
    field.ends_with("_id") || field.ends_with("_ids")
}

/// The gRPC port, as its reflection describes it.
pub(super) struct Grpc {
    channel: Channel,
    messages: BTreeMap<String, DescriptorProto>,
    /// By `Service/Method`: path and message.
    rpcs: BTreeMap<String, (String, String)>,
}

/// The credentials of a call.
#[derive(Clone, Default, Debug)]
pub(super) struct Credentials {
    pub(super) token: String,
    pub(super) actor: String,
    pub(super) second_factor_at: Option<i64>,
}

impl Grpc {
    pub(super) async fn connect(url: &str) -> Self {
        let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL");
        let mut grpc = Self {
            channel: endpoint.connect_lazy(),
            messages: BTreeMap::new(),
            rpcs: BTreeMap::new(),
        };
        let all = vec![MessageRequest::ListServices(String::new())];
        let mut symbols: Vec<String> = FOREIGN_MESSAGES.iter().map(|&it| it.to_owned()).collect();
        for found in grpc.ask(all).await {
            let MessageResponse::ListServicesResponse(list) = found else {
                panic!("no list of services: {found:?}");
            };
            let names = list.service.into_iter().map(|service| service.name);
            symbols
                .extend(names.filter(|name| !OPEN_PACKAGES.iter().any(|it| name.starts_with(it))));
        }
        let files = symbols
            .into_iter()
            .map(MessageRequest::FileContainingSymbol);
        for found in grpc.ask(files.collect()).await {
            let MessageResponse::FileDescriptorResponse(files) = found else {
                panic!("no descriptor: {found:?}");
            };
            for file in files.file_descriptor_proto {
                let file = FileDescriptorProto::decode(&*file).expect("a descriptor");
                grpc.learn(&file);
            }
        }
        grpc
    }

    async fn ask(&self, questions: Vec<MessageRequest>) -> Vec<MessageResponse> {
        let questions = questions
            .into_iter()
            .map(|question| ServerReflectionRequest {
                host: String::new(),
                message_request: Some(question),
            });
        let mut client = ServerReflectionClient::new(self.channel.clone());
        let questions = futures_util::stream::iter(questions.collect::<Vec<_>>());
        let answers = client.server_reflection_info(questions).await;
        let mut answers = answers.expect("reflection answers").into_inner();
        let mut found = Vec::new();
        while let Some(answer) = answers.message().await.expect("an answer") {
            found.push(answer.message_response.expect("a response"));
        }
        found
    }

    fn learn(&mut self, file: &FileDescriptorProto) {
        for message in &file.message_type {
            let name = format!(".{}.{}", file.package(), message.name());
            self.messages.insert(name, message.clone());
        }
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let message = method.input_type().to_owned();
                let name = format!("{}/{}", service.name(), method.name());
                self.rpcs.insert(name, (path, message));
            }
        }
    }

    pub(super) fn rpcs(&self) -> BTreeSet<String> {
        self.rpcs.keys().cloned().collect()
    }

    /// Names of the ids that a method's request has, wherever they stand.
    pub(super) fn ids_of(&self, rpc: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        if !self.rpcs.contains_key(rpc) {
            return found;
        }
        self.collect_ids(&self.rpcs[rpc].1, &mut found);
        found
    }

    fn collect_ids(&self, message: &str, found: &mut BTreeSet<String>) {
        // What is not listed are maps, of text.
        let fields = self.messages.get(message).map(|message| &message.field);
        for field in fields.into_iter().flatten() {
            match field.r#type() {
                Type::Message => self.collect_ids(field.type_name(), found),
                _ if is_id(field.name()) => {
                    found.insert(field.name().to_owned());
                }
                _ => {}
            }
        }
    }

    /// Calls a method with a message written as JSON; bytes in hexadecimal.
    pub(super) async fn call(
        &self,
        rpc: &str,
        with: &Credentials,
        body: &Value,
    ) -> Result<Bytes, Status> {
        let (path, message) = &self.rpcs[rpc];
        let mut request = tonic::Request::new(self.encode(message, body));
        let metadata = request.metadata_mut();
        if !with.token.is_empty() {
            let bearer = format!("Bearer {}", with.token);
            metadata.insert("authorization", bearer.parse().expect("ASCII"));
        }
        if !with.actor.is_empty() {
            metadata.insert("tollgate-actor", with.actor.parse().expect("ASCII"));
        }
        if let Some(at) = with.second_factor_at {
            metadata.insert(
                "tollgate-second-factor-at",
                at.to_string().parse().expect("ASCII"),
            );
        }
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client
            .ready()
            .await
            .map_err(|error| Status::unknown(error.to_string()))?;
        let path = PathAndQuery::try_from(path.as_str()).expect("a path");
        let answer = client.unary(request, path, Raw).await?;
        Ok(answer.into_inner())
    }

    fn encode(&self, message: &str, body: &Value) -> Bytes {
        let descriptor = &self.messages[message];
        let mut bytes = Vec::new();
        for (name, value) in body.as_object().expect("an object") {
            let field = descriptor.field.iter().find(|field| field.name() == name);
            let field = field.unwrap_or_else(|| panic!("{message} has no field {name}"));
            match (field.label(), value.as_array()) {
                (Label::Repeated, Some(values)) => {
                    for value in values {
                        self.encode_field(field, value, &mut bytes);
                    }
                }
                _ => self.encode_field(field, value, &mut bytes),
            }
        }
        bytes.into()
    }

    fn encode_field(&self, field: &FieldDescriptorProto, value: &Value, bytes: &mut Vec<u8>) {
        let tag = u32::try_from(field.number()).expect("a tag");
        let text = || value.as_str().expect("a text").to_owned();
        let number = || value.as_i64().expect("a number");
        match field.r#type() {
            Type::String => encoding::string::encode(tag, &text(), bytes),
            Type::Bytes => {
                let value = hex::decode(text()).expect("hexadecimal");
                encoding::bytes::encode(tag, &value, bytes);
            }
            Type::Bool => encoding::bool::encode(tag, &value.as_bool().expect("a bool"), bytes),
            // On the wire an unsigned number is the same as a signed one that is not negative.
            Type::Int64 | Type::Int32 | Type::Uint64 | Type::Uint32 | Type::Enum => {
                encoding::int64::encode(tag, &number(), bytes);
            }
            Type::Message => {
                let value = self.encode(field.type_name(), value);
                encoding::encode_key(tag, WireType::LengthDelimited, bytes);
                encoding::encode_varint(u64::try_from(value.len()).expect("small"), bytes);
                bytes.extend_from_slice(&value);
            }
            other => panic!(
                "{} is of type {other:?}, which nobody needed so far",
                field.name()
            ),
        }
    }
}

/// Messages as they are on the wire.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
