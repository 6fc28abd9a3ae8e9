package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// api is the little of the Kubernetes API that waiting and `status` need.
type api struct {
	server string
	client *http.Client
}

var kubeconfigData = regexp.MustCompile(`(certificate-authority|client-certificate|client-key)-data: (\S+)`)

// api is a client with the administrator's certificate, read from the
// kubeconfig that this tool wrote.
func (c *cluster) api() (*api, error) {
	content, err := os.ReadFile(c.adminKubeconfig())
	if err != nil {
		return nil, err
	}
	data := map[string][]byte{}
	for _, match := range kubeconfigData.FindAllStringSubmatch(string(content), -1) {
		if data[match[1]], err = base64.StdEncoding.DecodeString(match[2]); err != nil {
			return nil, err
		}
	}
	certificate, err := tls.X509KeyPair(data["client-certificate"], data["client-key"])
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(data["certificate-authority"])
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}}}
	return &api{c.server(), &http.Client{Transport: transport, Timeout: 10 * time.Second}}, nil
}

func (a *api) get(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.server+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := a.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", path, response.Status, strings.TrimSpace(string(body)))
	}
	return body, err
}

// ready is nil when the API server is, and names the checks that it fails.
func (a *api) ready(ctx context.Context) error {
	_, err := a.get(ctx, "/readyz")
	if err == nil {
		return nil
	}
	failed := slices.DeleteFunc(strings.Split(err.Error(), "\n"), func(line string) bool { return !strings.HasPrefix(line, "[-]") })
	if len(failed) == 0 {
		return err
	}
	return fmt.Errorf("kube-apiserver is not ready: %s", strings.Join(failed, ", "))
}

// nodeReady is nil when the node's Ready condition is true and its kubelet has
// said so since the given time: a node that died is still called ready for a
// while.
func (a *api) nodeReady(ctx context.Context, name string, since time.Time) error {
	body, err := a.get(ctx, "/api/v1/nodes/"+name)
	if err != nil {
		return err
	}
	var object struct {
		Status struct {
			Conditions []struct {
				Type, Status, Message string
				LastHeartbeatTime     time.Time
			}
		}
	}
	if err := json.Unmarshal(body, &object); err != nil {
		return err
	}
	for _, condition := range object.Status.Conditions {
		switch {
		case condition.Type != "Ready":
		case condition.Status != "True":
			return fmt.Errorf("%s is not ready: %s", name, condition.Message)
		case condition.LastHeartbeatTime.Before(since.Truncate(time.Second)):
			return fmt.Errorf("%s has not said anything new yet", name)
		default:
			return nil
		}
	}
	return fmt.Errorf("%s has not said yet whether it is ready", name)
}

// podsAllowed is nil when pods can be made in the default namespace, which
// they cannot before the controller manager has made its service account.
func (a *api) podsAllowed(ctx context.Context) error {
	_, err := a.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default")
	return err
}
