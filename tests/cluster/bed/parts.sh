# The parts of the cluster, sourced by `cluster`: network, certificates, the control plane's processes, the node's.
# shellcheck shell=bash

network() {
    ip netns add "$NS"
    inside ip link set lo up
    inside ip link add cni0 type bridge
    inside ip addr add $BRIDGE_IP/24 dev cni0
    inside ip link set cni0 up
    inside ip route add default via $BRIDGE_IP dev cni0 # a route for service addresses; nothing leaves the namespace
    inside sysctl -qw net.ipv4.ip_forward=1
}

certificate() { # certificate NAME SUBJECT [SAN]
    local extensions="extendedKeyUsage=serverAuth,clientAuth"
    [ -z "${3:-}" ] || extensions+=$'\n'"subjectAltName=$3"
    openssl req -new -newkey rsa:2048 -nodes -keyout "$BED/pki/$1.key" -subj "$2" 2>/dev/null |
        openssl x509 -req -CA "$BED/pki/ca.crt" -CAkey "$BED/pki/ca.key" -CAcreateserial -days 30 \
            -extfile <(echo "$extensions") -out "$BED/pki/$1.crt" 2>/dev/null
}

kubeconfig() { # kubeconfig FILE CERTIFICATE
    local config="kubectl --kubeconfig=$1 config"
    $config set-cluster bed --server=https://127.0.0.1:6443 --certificate-authority="$BED/pki/ca.crt" --embed-certs=true
    $config set-credentials me --client-certificate="$BED/pki/$2.crt" --client-key="$BED/pki/$2.key" --embed-certs=true
    $config set-context bed --cluster=bed --user=me
    $config use-context bed
}

make_pki() {
    local pki=$BED/pki names=DNS:localhost name
    for name in kubernetes{,.default{,.svc{,.cluster.local}}}; do names+=,DNS:$name; done
    openssl req -x509 -newkey rsa:2048 -nodes -keyout "$pki/ca.key" -out "$pki/ca.crt" -days 30 -subj /CN=bed-ca 2>/dev/null
    openssl genrsa -out "$pki/sa.key" 2048 2>/dev/null
    openssl rsa -in "$pki/sa.key" -pubout -out "$pki/sa.pub" 2>/dev/null
    certificate apiserver /CN=kube-apiserver "IP:127.0.0.1,IP:10.96.0.1,IP:$BRIDGE_IP,$names"
    certificate admin /O=system:masters/CN=admin
    certificate kubelet /O=system:nodes/CN=system:node:bed "IP:127.0.0.1,IP:$BRIDGE_IP,DNS:bed"
    certificate kubelet-client /O=system:masters/CN=kubelet-client
    certificate controller-manager /CN=system:kube-controller-manager
    certificate scheduler /CN=system:kube-scheduler
    certificate proxy /CN=system:kube-proxy
    certificate front-proxy /CN=front-proxy
    kubeconfig "$BED/kubeconfig" admin
    for name in kubelet controller-manager scheduler proxy; do kubeconfig "$BED/$name.kubeconfig" $name; done
}

control_plane() {
    start etcd etcd --name bed --data-dir "$BED/etcd" --unsafe-no-fsync \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
        --initial-cluster bed=http://127.0.0.1:2380
    wait_for 30 etcd inside curl -sf http://127.0.0.1:2379/health
    api_server
    wait_for 90 kube-apiserver inside kubectl get --raw /readyz
    start kube-controller-manager kube-controller-manager --kubeconfig="$BED/controller-manager.kubeconfig" \
        --leader-elect=false --use-service-account-credentials=true --allocate-node-cidrs=false \
        --service-account-private-key-file="$BED/pki/sa.key" --root-ca-file="$BED/pki/ca.crt" \
        --cluster-signing-cert-file="$BED/pki/ca.crt" --cluster-signing-key-file="$BED/pki/ca.key" \
        --service-cluster-ip-range=10.96.0.0/16
    start kube-scheduler kube-scheduler --kubeconfig="$BED/scheduler.kubeconfig" --leader-elect=false
    registry
}

api_server() {
    cat >"$BED/audit.yaml" <<Y
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
Y
    start kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --secure-port=6443 --advertise-address=$BRIDGE_IP \
        --client-ca-file="$BED/pki/ca.crt" --tls-cert-file="$BED/pki/apiserver.crt" --tls-private-key-file="$BED/pki/apiserver.key" \
        --audit-policy-file="$BED/audit.yaml" --audit-log-path="$BED/log/audit" --audit-log-maxsize=200 --audit-log-maxbackup=1 \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
        --service-cluster-ip-range=10.96.0.0/16 --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file="$BED/pki/sa.pub" --service-account-signing-key-file="$BED/pki/sa.key" \
        --kubelet-client-certificate="$BED/pki/kubelet-client.crt" --kubelet-client-key="$BED/pki/kubelet-client.key" \
        --kubelet-certificate-authority="$BED/pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
        --requestheader-client-ca-file="$BED/pki/ca.crt" --requestheader-allowed-names=front-proxy \
        --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
        --requestheader-extra-headers-prefix=X-Remote-Extra- \
        --proxy-client-cert-file="$BED/pki/front-proxy.crt" --proxy-client-key-file="$BED/pki/front-proxy.key"
}

registry() {
    cat >"$BED/registry.yml" <<Y
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $BED/images/registry}, delete: {enabled: true}}
http: {addr: "127.0.0.1:5000"}
Y
    start registry docker-registry serve "$BED/registry.yml"
}

node() {
    container_runtime
    dns
    kubelet_and_proxy
}

container_runtime() {
    cat >"$BED/containerd.toml" <<T
version = 2
root = "$BED/images/containerd"
state = "$BED/ctd"
[grpc]
  address = "$CONTAINERD"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$BED/cni"
T
    cat >"$BED/cni/10-bed.conflist" <<J
{"cniVersion":"0.4.0","name":"bed","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"10.244.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"$BED/cni-data"}},
 {"type":"portmap","capabilities":{"portMappings":true}},{"type":"loopback"}]}
J
    start containerd containerd --config "$BED/containerd.toml"
    wait_for 30 containerd ctr -a "$CONTAINERD" version
    pause_archive
    ctr -a "$CONTAINERD" -n k8s.io images import --digests=false "$BED/pause.tar" >/dev/null
}

pause_archive() { # the sandbox image: one static binary that waits and reaps
    cat >"$BED/pause.c" <<'C'
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int s) { (void)s; _exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) { signal(SIGINT, end); signal(SIGTERM, end); signal(SIGCHLD, reap); for (;;) pause(); }
C
    gcc -static -Os -o "$BED/pause" "$BED/pause.c"
    python3 "$HERE/oci_archive.py" "$BED/pause" localhost/pause:1 "$BED/pause.tar"
}

dns() {
    cat >"$BED/Corefile" <<C
.:53 {
    bind $BRIDGE_IP
    errors
    health 127.0.0.1:8080
    kubernetes cluster.local in-addr.arpa {
        kubeconfig $BED/kubeconfig
        pods insecure
        ttl 5
    }
    cache 5
    reload
}
C
    start coredns coredns -conf "$BED/Corefile"
}

# Image collection is off: what it deletes could not be pulled again once the registry's copy is gone.
kubelet_and_proxy() {
    cat >"$BED/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://$CONTAINERD
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $BED/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $BED/pki/kubelet.crt
tlsPrivateKeyFile: $BED/pki/kubelet.key
clusterDNS: [$BRIDGE_IP]
clusterDomain: cluster.local
resolvConf: $BED/resolv.conf
maxPods: 200
evictionHard: {memory.available: "50Mi", nodefs.available: "1%", nodefs.inodesFree: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
cgroupRoot: /
staticPodPath: $BED/manifests
nodeStatusUpdateFrequency: 2s
syncFrequency: 10s
Y
    echo "nameserver $BRIDGE_IP" >"$BED/resolv.conf"
    start kubelet kubelet --config="$BED/kubelet.yaml" --kubeconfig="$BED/kubelet.kubeconfig" --root-dir="$BED/kubelet" \
        --hostname-override=bed --node-ip=$BRIDGE_IP
    cat >"$BED/proxy.yaml" <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $BED/proxy.kubeconfig}
clusterCIDR: 10.244.0.0/24
hostnameOverride: bed
mode: iptables
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
Y
    start kube-proxy kube-proxy --config="$BED/proxy.yaml"
}
