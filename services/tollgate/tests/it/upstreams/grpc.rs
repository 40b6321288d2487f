//! gRPC through the edge: a server and clients as people generate them, in front of and behind a
//! whole Tollgate.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use http::Uri;
use parking_lot::Mutex;
use proto::stats_aggregator::v1::{
    self as pb,
    stats_aggregator_service_client::StatsAggregatorServiceClient as Client,
    stats_aggregator_service_server::{
        StatsAggregatorService as Service, StatsAggregatorServiceServer as Server,
    },
};
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataMap,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint, server::TcpIncoming},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::stack::Stack;

/// Calls at once on one connection of a client: more than one connection to the upstream carries.
const AT_ONCE: usize = 90;
const COST: i64 = 2;

/// Somebody's API: `ListDaily` answers, `ListHourly` refuses, `GetApplied` fails late.
#[derive(Default)]
struct Api {
    seen: Arc<Mutex<Vec<MetadataMap>>>,
}

#[tonic::async_trait]
impl Service for Api {
    async fn list_daily(
        &self,
        request: Request<pb::ListDailyRequest>,
    ) -> Result<Response<pb::ListDailyResponse>, Status> {
        self.seen.lock().push(request.metadata().clone());
        let date = request.into_inner().from;
        let day = pb::Daily {
            date,
            ..pb::Daily::default()
        };
        let mut answer = Response::new(pb::ListDailyResponse { days: vec![day] });
        answer
            .metadata_mut()
            .insert("x-own", "kept".parse().unwrap());
        Ok(answer)
    }

    async fn list_hourly(
        &self,
        _: Request<pb::ListHourlyRequest>,
    ) -> Result<Response<pb::ListHourlyResponse>, Status> {
        Err(Status::not_found("no such hour"))
    }

    async fn get_applied(
        &self,
        _: Request<pb::GetAppliedRequest>,
    ) -> Result<Response<pb::GetAppliedResponse>, Status> {
        Ok(Response::new(pb::GetAppliedResponse { applied: true }))
    }
}

/// Serves until it is dropped; its address.
async fn upstream(serving: &mut JoinSet<()>, seen: &Arc<Mutex<Vec<MetadataMap>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("a descriptor");
    let api = Api {
        seen: Arc::clone(seen),
    };
    let served = tonic::transport::Server::builder()
        .add_service(Server::new(api))
        .add_service(reflection)
        .serve_with_incoming(TcpIncoming::from(listener));
    serving.spawn(async move { served.await.expect("served") });
    url
}

fn keyed(name: &'static str, value: &str) -> impl tonic::service::Interceptor + Clone + use<> {
    let value: tonic::metadata::MetadataValue<_> = value.parse().expect("visible");
    move |mut request: Request<()>| {
        request.metadata_mut().insert(name, value.clone());
        Ok(request)
    }
}

async fn unary(channel: &Channel, origin: &Uri, key: &str) {
    let presented = [
        ("x-api-key", key.to_owned()),
        ("authorization", format!("Bearer {key}")),
    ];
    for (name, value) in presented {
        let channel = InterceptedService::new(channel.clone(), keyed(name, &value));
        let mut client = Client::with_origin(channel, origin.clone());
        let request = pb::ListDailyRequest {
            from: "2026-01-02".to_owned(),
            ..pb::ListDailyRequest::default()
        };
        let answer = client.list_daily(request).await.expect("answered");
        assert_eq!(answer.metadata().get("x-own").expect("kept"), "kept");
        assert_eq!(answer.metadata().get("tollgate-cost").expect("ours"), "2");
        assert_eq!(answer.into_inner().days[0].date, "2026-01-02");
        // The answer is its trailers.
        let refused = client.list_hourly(pb::ListHourlyRequest::default()).await;
        let refused = refused.expect_err("refused");
        assert_eq!(refused.code(), Code::NotFound);
        assert_eq!(refused.message(), "no such hour");
    }
    let channel = InterceptedService::new(channel.clone(), keyed("x-api-key", "sk_live_wrong"));
    let mut stranger = Client::with_origin(channel, origin.clone());
    let refused = stranger.list_daily(pb::ListDailyRequest::default()).await;
    let refused = refused.expect_err("refused");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    assert!(
        refused.message().starts_with("invalid_key: "),
        "{refused:?}"
    );
}

/// Each request is sent when the answer to the one before is there, all in one call.
async fn both_ways(channel: &Channel, origin: &Uri, key: &str) {
    let channel = InterceptedService::new(channel.clone(), keyed("x-api-key", key));
    let mut client = ServerReflectionClient::with_origin(channel, origin.clone());
    let (say, said) = tokio::sync::mpsc::channel(1);
    let said = stream::unfold(
        said,
        |mut said| async move { Some((said.recv().await?, said)) },
    );
    let ask = |symbol: &str| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol(symbol.to_owned())),
    };
    say.send(ask("tollgate.wallet.v1.WalletService"))
        .await
        .expect("sent");
    let answered = client.server_reflection_info(said).await.expect("answered");
    let mut answers = answered.into_inner();
    for symbol in ["tollgate.keys.v1.KeysService", "nothing"] {
        let answer = answers.next().await.expect("an answer").expect("an answer");
        let found = matches!(
            answer.message_response,
            Some(MessageResponse::FileDescriptorResponse(_))
        );
        assert!(found, "{answer:?}");
        say.send(ask(symbol)).await.expect("sent");
    }
    // The trailers of a stream that has said much.
    let failed = answers.next().await.expect("an end").expect_err("unknown");
    assert_eq!(failed.code(), Code::NotFound, "{failed:?}");
}

async fn many(channel: &Channel, origin: &Uri, key: &str) {
    let mut calls = JoinSet::new();
    for number in 0..AT_ONCE {
        let channel = InterceptedService::new(channel.clone(), keyed("x-api-key", key));
        let mut client = Client::with_origin(channel, origin.clone());
        calls.spawn(async move {
            let from = number.to_string();
            let request = pb::ListDailyRequest {
                from: from.clone(),
                ..pb::ListDailyRequest::default()
            };
            let answer = client.list_daily(request).await.expect("answered");
            assert_eq!(answer.into_inner().days[0].date, from, "its own answer");
        });
    }
    calls.join_all().await;
}

#[tokio::test]
async fn grpc_passes_both_ways_with_its_trailers_and_is_charged_once_a_call() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let (mut serving, seen) = (JoinSet::new(), Arc::default());
    let url = upstream(&mut serving, &seen).await;
    let cost = COST.to_string();
    let set = [
        "service",
        "set",
        "grpc",
        "--upstream",
        &url,
        "--cost",
        &cost,
    ];
    stack.cli(&[&set[..], &["--protocol", "h2"]].concat());
    let customer = stack.customer("Grpc", 10_000);
    let scope = ["--scope", "grpc:call", "--environment", "production"];
    let (_, key) = stack.key(&customer, &scope);
    let base = stack.gateways()[0].clone();
    let origin: Uri = format!("{base}/api/v1/grpc").parse().expect("an address");
    let channel = Endpoint::from_shared(base).expect("an address");
    let channel = channel.connect().await.expect("connected");

    unary(&channel, &origin, &key).await;
    both_ways(&channel, &origin, &key).await;
    many(&channel, &origin, &key).await;
    let seen = seen.lock().clone();
    assert_eq!(seen.len(), 2 + AT_ONCE);
    for metadata in &seen {
        for name in ["x-api-key", "authorization"] {
            assert!(metadata.get(name).is_none(), "{name} has crossed");
        }
        assert!(metadata.get("tollgate-principal").is_some());
    }
    let report = stack.audit();
    assert_eq!(report["differences"], 0, "{report:#}");
    // Two of each of the two unary calls, the stream, the many.
    let paid = COST * i64::try_from(2 + 2 + 1 + AT_ONCE).expect("few");
    let wallet = stack.cli(&["wallet", "show", "--org", &customer.org]);
    assert_eq!(wallet["total_used"], paid, "{wallet}");
}
