package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// authority signs certificates. The cluster has two: one for itself, and one
// with which the API server vouches for users towards extension API servers.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

// identity is a certificate with its key, both as PEM.
type identity struct{ certificate, key []byte }

// users are the components that call the API server, with the name and group
// that the built-in roles and the node authorizer know them by.
func (c *cluster) users() map[string]pkix.Name {
	users := map[string]pkix.Name{
		"admin":                   {CommonName: "admin", Organization: []string{"system:masters"}},
		"kube-controller-manager": {CommonName: "system:kube-controller-manager"},
		"kube-scheduler":          {CommonName: "system:kube-scheduler"},
		"kube-proxy":              {CommonName: "system:kube-proxy"},
		"dns":                     {CommonName: "system:coredns"},
	}
	for _, n := range c.nodes {
		users[n.name] = pkix.Name{CommonName: "system:node:" + n.name, Organization: []string{"system:nodes"}}
	}
	return users
}

// writeIdentities makes all keys, certificates and kubeconfigs.
func (c *cluster) writeIdentities() error {
	root, err := newAuthority("ortolan-cluster")
	if err != nil {
		return err
	}
	front, err := newAuthority("ortolan-cluster-front-proxy")
	if err != nil {
		return err
	}
	serving, err := root.issue(pkix.Name{CommonName: "kube-apiserver"},
		[]string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		net.ParseIP("127.0.0.1"), net.ParseIP(hostAddress), net.ParseIP(linkHostEnd), net.ParseIP(apiServiceIP))
	if err != nil {
		return err
	}
	toKubelet, err := root.issue(pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}, nil)
	if err != nil {
		return err
	}
	toExtension, err := front.issue(pkix.Name{CommonName: "front-proxy-client"}, nil)
	if err != nil {
		return err
	}
	tokens, err := root.issue(pkix.Name{CommonName: "service-accounts"}, nil)
	if err != nil {
		return err
	}
	rootKey, err := keyPEM(root.key)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"ca.crt": root.pem, "ca.key": rootKey, "front-proxy-ca.crt": front.pem,
		"apiserver.crt": serving.certificate, "apiserver.key": serving.key,
		"kubelet-client.crt": toKubelet.certificate, "kubelet-client.key": toKubelet.key,
		"front-proxy.crt": toExtension.certificate, "front-proxy.key": toExtension.key,
		"service-accounts.key": tokens.key,
	} {
		if err := os.WriteFile(c.pki(name), content, 0o600); err != nil {
			return err
		}
	}
	return c.writeKubeconfigs(root)
}

func (c *cluster) writeKubeconfigs(root *authority) error {
	for user, name := range c.users() {
		client, err := root.issue(name, nil)
		if err != nil {
			return err
		}
		content, err := render("kubeconfig.yaml", map[string]string{
			"Server":      c.server(),
			"User":        user,
			"Authority":   base64.StdEncoding.EncodeToString(root.pem),
			"Certificate": base64.StdEncoding.EncodeToString(client.certificate),
			"Key":         base64.StdEncoding.EncodeToString(client.key),
		})
		if err != nil {
			return err
		}
		if err := os.WriteFile(c.kubeconfig(user), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) pki(name string) string        { return c.folders.inRun("pki", name) }
func (c *cluster) kubeconfig(user string) string { return c.folders.inRun(user + ".kubeconfig") }
func (c *cluster) adminKubeconfig() string       { return c.kubeconfig("admin") }
func (c *cluster) server() string                { return fmt.Sprintf("https://%s:%d", hostAddress, apiServerPort) }

const validity = 365 * 24 * time.Hour

func newAuthority(name string) (*authority, error) {
	template := x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	return sign(&template, nil)
}

// issue makes an identity that serves and is served.
func (a *authority) issue(name pkix.Name, names []string, addresses ...net.IP) (identity, error) {
	template := x509.Certificate{
		Subject: name, DNSNames: names, IPAddresses: addresses,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	signed, err := sign(&template, a)
	if err != nil {
		return identity{}, err
	}
	key, err := keyPEM(signed.key)
	return identity{signed.pem, key}, err
}

// sign signs the template with the authority, or with its own key without one.
func sign(template *x509.Certificate, by *authority) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, err
	}
	// A clock that is set back a little must not undo the cluster.
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(validity)
	if by == nil {
		by = &authority{certificate: template, key: key}
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, by.certificate, &key.PublicKey, by.key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, err
	}
	return &authority{certificate, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})}, nil
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}), nil
}
