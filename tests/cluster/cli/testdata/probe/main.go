// Command probe is what the self test runs in pods: it tells where it runs,
// and on request fetches a page, to show what can be reached from there.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		fmt.Fprint(w, os.Getenv("NODE"))
	})
	http.HandleFunc("/fetch", func(w http.ResponseWriter, r *http.Request) {
		page, err := client.Get(r.FormValue("url"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer page.Body.Close()
		_, _ = io.Copy(w, page.Body)
	})
	fmt.Println("probe is listening")
	log.Fatal(http.ListenAndServe(":8080", nil))
}
