//! Which process runs what, where it listens, and what it is told.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use clap::ValueEnum;

use super::Surroundings;
use super::secrets::Secrets;
use crate::failure::{Failure, Result};
use crate::pepper::PepperFiles;
use crate::roster::ROSTER;
use crate::seed::Upstreams;

const GATEWAY_PORT: u16 = 8080;
const API_PORT: u16 = 8081;
const GRPC_PORT: u16 = 9090;
const OPS_PORT: u16 = 9100;
const TRACES_PORT: u16 = 8089;

/// Where the samples are.
const LOOPBACK_NETWORKS: &str = "127.0.0.0/8, ::1/128";

/// How ports are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ports {
    /// Free ones for everything
    Auto,
    /// 8080 gateway, 8081 management API, 9090 gRPC, 9100 ops, 8089 traces; free ones for the rest
    Default,
}

impl Ports {
    /// The port for something with a default.
    fn choose(self, port: u16, what: &str) -> Result<u16> {
        if self == Self::Auto {
            return Ok(testkit::ports::free());
        }
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_free_again) => Ok(port),
            Err(error) => Err(Failure::usage(format!(
                "port {port} ({what}) cannot be had: {error}. Stop who has it, or run with \
                 --ports auto"
            ))),
        }
    }
}

/// A process with services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Child {
    /// `tollgate` for all services, else the service's own; gateways are numbered.
    pub(super) name: String,
    pub(super) services: Vec<&'static str>,
    pub(super) grpc: u16,
    pub(super) ops: u16,
    pub(super) gateway: Option<Gateway>,
}

/// A gateway of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gateway {
    /// `gateway-1`, `gateway-2`, …
    pub(super) name: String,
    pub(super) port: u16,
}

/// Everything with a port.
pub(super) struct Plan {
    /// In the order of their start.
    pub(super) children: Vec<Child>,
    pub(super) samples: [(&'static str, u16); 3],
    /// The management API.
    pub(super) api: u16,
    pub(super) traces: u16,
}

impl Plan {
    /// Decides who runs what.
    pub(super) fn make(is_split: bool, gateways: u16, ports: Ports) -> Result<Self> {
        let free = testkit::ports::free;
        let grpc = ports.choose(GRPC_PORT, "gRPC")?;
        let ops = ports.choose(OPS_PORT, "health and metrics")?;
        let mut listen = vec![ports.choose(GATEWAY_PORT, "gateway")?];
        listen.resize_with(usize::from(gateways), free);
        let mut numbered = listen.into_iter().zip(1..).map(|(port, number)| Gateway {
            name: format!("gateway-{number}"),
            port,
        });
        let mut children = Vec::new();
        if is_split {
            for name in ROSTER
                .iter()
                .map(|it| it.name)
                .filter(|it| *it != "gateway")
            {
                children.push(Child {
                    name: name.to_owned(),
                    services: vec![name],
                    grpc: if name == "keys" { grpc } else { free() },
                    ops: free(),
                    gateway: None,
                });
            }
        } else {
            children.push(Child {
                name: "tollgate".to_owned(),
                services: ROSTER.iter().map(|it| it.name).collect(),
                grpc,
                ops,
                gateway: numbered.next(),
            });
        }
        for (index, gateway) in numbered.enumerate() {
            children.push(Child {
                name: gateway.name.clone(),
                services: vec!["gateway"],
                grpc: free(),
                ops: if is_split && index == 0 { ops } else { free() },
                gateway: Some(gateway),
            });
        }
        let samples = ["pdf", "ai", "mileage"].map(|name| (name, free()));
        Ok(Self {
            children,
            samples,
            api: ports.choose(API_PORT, "management API")?,
            traces: ports.choose(TRACES_PORT, "traces")?,
        })
    }

    /// Who runs a service; the first of several.
    pub(super) fn child_of(&self, service: &str) -> Option<&Child> {
        self.children
            .iter()
            .find(|child| child.services.contains(&service))
    }

    /// All gateways with their processes.
    pub(super) fn gateways(&self) -> impl Iterator<Item = (&Child, &Gateway)> {
        self.children
            .iter()
            .filter_map(|child| Some((child, child.gateway.as_ref()?)))
    }

    /// Where the samples are.
    pub(super) fn upstreams(&self) -> Upstreams {
        self.samples
            .iter()
            .map(|(name, port)| ((*name).to_owned(), url(*port)))
            .collect()
    }
}

/// What all processes are told.
pub(super) struct World<'a> {
    pub(super) secrets: &'a Secrets,
    pub(super) peppers: PepperFiles,
    pub(super) postgres_url: String,
    pub(super) redis_url: String,
    pub(super) nats_url: String,
    /// Where spans go, unless the environment says it already.
    pub(super) otlp_endpoint: Option<String>,
    /// Where mail is handed in, unless the environment says it already.
    pub(super) smtp_url: Option<String>,
    pub(super) surroundings: &'a Surroundings,
    pub(super) country_db: Option<PathBuf>,
}

/// A variable and its value.
pub(super) type Variable = (String, String);

impl World<'_> {
    /// The variables of one process.
    pub(super) fn variables(&self, plan: &Plan, child: &Child, journal: PathBuf) -> Vec<Variable> {
        let mut all = Vec::new();
        let mut set = |name: &str, value: String| all.push((name.to_owned(), value));
        // A file that the environment names would be a second opinion.
        let mut secret = |name: &str, value: &str| {
            set(name, value.to_owned());
            set(&format!("{name}_FILE"), String::new());
        };
        secret("NATS_URL", &self.nats_url);
        secret("REDIS_URL", &self.redis_url);
        secret("TOLLGATE_SERVICE_TOKEN", &self.secrets.service_token);
        secret("TOLLGATE_OPERATOR_TOKEN", &self.secrets.operator_token);
        // A gateway alone gets by without a database, and shall.
        let stores = child.services.iter().any(|service| *service != "gateway");
        secret("DATABASE_URL", if stores { &self.postgres_url } else { "" });
        let smtp_url = self.smtp_url.as_ref();
        if let Some(smtp_url) = smtp_url.filter(|_| child.services.contains(&"keys")) {
            secret("TOLLGATE_KEYS_SMTP_URL", smtp_url);
        }
        if child.gateway.is_some() {
            secret(
                "TOLLGATE_GATEWAY_PRINCIPAL_SECRET",
                &self.secrets.principal_secret,
            );
        }
        let PepperFiles { current, previous } = &self.peppers;
        let hashes = |service: &&str| ["keys", "gateway"].contains(service);
        if child.services.iter().any(hashes) {
            for (name, file) in [
                ("API_KEY_PEPPER", current),
                ("API_KEY_PEPPER_PREVIOUS", previous),
            ] {
                set(name, String::new());
                set(&format!("{name}_FILE"), file.display().to_string());
            }
        }
        set("TOLLGATE_GRPC_LISTEN", loopback(child.grpc));
        set("TOLLGATE_OPS_LISTEN", loopback(child.ops));
        for entry in ROSTER
            .iter()
            .filter(|it| !child.services.contains(&it.name))
        {
            if let Some(other) = plan.child_of(entry.name).filter(|_| entry.has_grpc()) {
                let name = entry.name.to_uppercase().replace('-', "_");
                set(&format!("TOLLGATE_{name}_GRPC_URL"), url(other.grpc));
            }
        }
        if child.services.contains(&"keys") {
            set("TOLLGATE_KEYS_PORTAL_URL", url(plan.api));
        }
        if child.services.contains(&"portal") {
            set("TOLLGATE_PORTAL_LISTEN", loopback(plan.api));
        }
        if let Some(gateway) = &child.gateway {
            set("TOLLGATE_GATEWAY_LISTEN", loopback(gateway.port));
            set("TOLLGATE_GATEWAY_NAME", gateway.name.clone());
            set(
                "TOLLGATE_GATEWAY_JOURNAL_DIR",
                journal.display().to_string(),
            );
            // Lets `X-Forwarded-For` on loopback play addresses from many countries.
            if !self.surroundings.has("TOLLGATE_GATEWAY_TRUSTED_HOPS") {
                set("TOLLGATE_GATEWAY_TRUSTED_HOPS", "1".to_owned());
            }
            let has_db = self.surroundings.has("TOLLGATE_GATEWAY_COUNTRY_DB");
            if let Some(path) = self.country_db.as_ref().filter(|_| !has_db) {
                set("TOLLGATE_GATEWAY_COUNTRY_DB", path.display().to_string());
            }
        }
        all.extend(self.networks(child));
        all.extend(self.traces());
        all
    }

    /// Upstreams may be on loopback, where the samples are.
    fn networks(&self, child: &Child) -> Vec<Variable> {
        let names = [
            ("keys", "TOLLGATE_KEYS_UPSTREAM_NETWORKS"),
            ("gateway", "TOLLGATE_GATEWAY_UPSTREAM_NETWORKS"),
        ];
        let wanted = names.into_iter().filter(|(service, name)| {
            child.services.contains(service) && !self.surroundings.has(name)
        });
        wanted
            .map(|(_, name)| (name.to_owned(), LOOPBACK_NETWORKS.to_owned()))
            .collect()
    }

    /// Where traces go, and which.
    fn traces(&self) -> Vec<Variable> {
        let mut all = Vec::new();
        let mut set = |name: &str, value: &str| all.push((name.to_owned(), value.to_owned()));
        if let Some(endpoint) = &self.otlp_endpoint {
            set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
            set("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
            // Whoever has just made a call looks at once.
            set("OTEL_BSP_SCHEDULE_DELAY", "200");
        }
        if !self.surroundings.has("OTEL_TRACES_SAMPLER") {
            set("OTEL_TRACES_SAMPLER", "parentbased_always_on");
        }
        all
    }
}

/// Something that listens on loopback.
pub(super) fn url(port: u16) -> String {
    format!("http://{}", loopback(port))
}

pub(super) fn loopback(port: u16) -> String {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(plan: &Plan) -> Vec<&str> {
        plan.children
            .iter()
            .map(|child| child.name.as_str())
            .collect()
    }

    #[test]
    fn a_port_that_is_taken_is_named_with_the_way_out() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let failure = Ports::Default.choose(port, "gateway").unwrap_err();
        let text = failure.to_string();
        assert!(
            text.starts_with(&format!("port {port} (gateway)")),
            "{text}"
        );
        assert!(
            text.contains("--ports auto") && !text.contains('\n'),
            "{text}"
        );
        assert_eq!(failure.exit_code(), 64);
    }

    #[test]
    fn one_process_runs_all_and_further_gateways_are_their_own() {
        let plan = Plan::make(false, 2, Ports::Auto).unwrap();
        assert_eq!(names(&plan), ["tollgate", "gateway-2"]);
        let gateways: Vec<&str> = plan.gateways().map(|(_, it)| it.name.as_str()).collect();
        assert_eq!(gateways, ["gateway-1", "gateway-2"]);
        assert_eq!(plan.child_of("wallet").unwrap().name, "tollgate");
    }

    #[test]
    fn split_services_start_in_the_order_of_the_roster() {
        let plan = Plan::make(true, 2, Ports::Auto).unwrap();
        let wanted = [
            "keys",
            "wallet",
            "usage-ingest",
            "stats-aggregator",
            "anomaly-detector",
            "portal",
            "gateway-1",
            "gateway-2",
        ];
        assert_eq!(names(&plan), wanted);
    }

    #[test]
    fn a_gateway_alone_is_told_where_the_others_are_and_nothing_of_the_database() {
        let plan = Plan::make(true, 1, Ports::Auto).unwrap();
        let secrets = Secrets {
            service_token: "s".to_owned(),
            operator_token: "o".to_owned(),
            principal_secret: "q".to_owned(),
            demo: crate::seed::DemoKeys::default(),
            samples: Upstreams::new(),
        };
        let world = World {
            secrets: &secrets,
            peppers: PepperFiles {
                current: PathBuf::from("/p"),
                previous: PathBuf::from("/q"),
            },
            postgres_url: "postgres://secret".to_owned(),
            redis_url: "redis://r".to_owned(),
            nats_url: "nats://n".to_owned(),
            otlp_endpoint: None,
            smtp_url: None,
            surroundings: &Surroundings::default(),
            country_db: None,
        };
        let child = plan.child_of("gateway").unwrap();
        let told = world.variables(&plan, child, PathBuf::from("/j"));
        let value = |name: &str| told.iter().find(|it| it.0 == name).map(|it| it.1.clone());
        let keys = plan.child_of("keys").unwrap();
        assert_eq!(value("TOLLGATE_KEYS_GRPC_URL"), Some(url(keys.grpc)));
        assert_eq!(value("DATABASE_URL"), Some(String::new()));
        assert_eq!(value("TOLLGATE_GATEWAY_JOURNAL_DIR"), Some("/j".to_owned()));
        let known = crate::roster::known_variables();
        let ours = told
            .iter()
            .filter(|(name, _)| name.starts_with("TOLLGATE_"));
        for (name, _) in ours {
            let bare = name.strip_suffix("_FILE").unwrap_or(name);
            assert!(known.contains(bare), "{name} is known to the services");
        }
    }
}
